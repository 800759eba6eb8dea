"""An experiment on the real engines: two stages, the second from the model of the first."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.cluster.whole_run import Command, overrides

WORLD = "playground.language"
HELDOUT = (
    f"heldout={{problems: '{WORLD}:heldout', verifier: '{WORLD}:verify',"
    f" identity: '{WORLD}:identity', n: 20}}"
)


def test_a_chain_of_two_stages_is_played_and_not_again(model: Path, tmp_path: Path):
    folder = tmp_path / "chain"
    settings = [*overrides(model, folder), "iterations=2", HELDOUT]
    # A stage's own directory and seed are the experiment's.
    settings = [each for each in settings if not each.startswith("run_dir=")]
    first = {"name": "one", "config": "configs/quickstart.yaml", "set": settings}
    game = [each for each in settings if not each.startswith("model.")]
    later = first | {"name": "two", "set": [*game, "challenger.alpha=0.1"]}
    preset = tmp_path / "chain.yaml"
    values = {"experiment_dir": str(folder), "seeds": [3], "methods": {"chain": [first, later]}}
    preset.write_text(yaml.safe_dump(values | {"methods": values["methods"] | {"base": []}}))

    played = Command("experiment", str(preset))
    assert played.end() == 0, "".join(played.said)
    assert played.living() == []
    summaries = [
        json.loads((folder / "seed-3" / name / "summary.json").read_text())
        for name in ("one", "one+two")
    ]
    before = [summary["heldout"]["before"] for summary in summaries]
    # The later stage begins with the very model that the first has left.
    assert before[1] == summaries[0]["heldout"]["after"]
    config = yaml.safe_load((folder / "seed-3" / "one+two" / "config.yaml").read_text())
    assert config["model"]["path"] == str(folder / "seed-3" / "one" / "checkpoints" / "2" / "hf")
    results = json.loads((folder / "results.json").read_text())
    assert {name: len(of["seeds"]) for name, of in results["methods"].items()} == {
        "chain": 1, "base": 1
    }  # fmt: skip
    assert (folder / "report.html").is_file()

    again = Command("experiment", str(preset))
    assert again.end() == 0, "".join(again.said)
    assert "".join(again.said).count("has ended") == 2
