"""`make replicate` without engines: the files that it writes, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import measure, replicate
from cluster.experiment import run_experiment
from tests.cluster.test_experiment import QUICKSTART, Player

METHODS = ["base", "grpo", "lsp_zero", "lsp", "lsp_learn", "grpo_lsp", "lsp_grpo"]


@pytest.mark.parametrize(("kl", "stem"), [([], "replication"), (["--kl"], "replication-kl")])
@pytest.mark.parametrize("failing", [[], ["lsp_zero"]])
def test_figures_are_written_with_what_is_missing(tmp_path, monkeypatch, kl, stem, failing):
    def stages(method: str) -> list[dict]:
        return [] if method == "base" else [{"name": method, "config": QUICKSTART, "set": [
            f"checkpoint.every={5 + METHODS.index(method)}"]}]  # fmt: skip

    content = {
        "experiment_dir": str(tmp_path / "runs"),
        "seeds": [0],
        "methods": {method: stages(method) for method in METHODS},
    }
    for name in ("playground", "playground-kl"):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
    player = Player(failing)
    monkeypatch.setattr(replicate, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(replicate, "run_experiment", lambda config: run_experiment(config, player))
    monkeypatch.setattr(measure, "RESULTS", Path(tmp_path))
    monkeypatch.setattr(sys, "argv", ["replicate.py", *kl, "--seeds", "3", "5"])
    assert replicate.main() == len(failing)
    written = json.loads((tmp_path / f"{stem}.json").read_text())
    assert list(written["methods"]) == METHODS
    assert len(written["methods"]["lsp"]["seeds"]) == 2
    assert len(written["missing"]) == 2 * len(failing)
    assert written["command"].startswith("python -m benchmarks.replicate")
    assert ("over_time" if kl else "questions") in written
    time = written["time"]
    assert (time["at_once"], time["clock_s"]) == (1, None)
    assert time["stages"]["seed-3/lsp"] == {"setup": 20.0, "train": 40.0}
    stages = 2 * (len(METHODS) - 1 - len(failing))
    assert (len(time["stages"]), time["stages_s"]) == (stages, 60.0 * stages)
    text = (tmp_path / f"{stem}.md").read_text()
    assert "| lsp | 2 | 50.0 |" in text
    assert f"Time: {stages} stages, at most 1 at once: {stages} min by the clock of each" in text
    assert (tmp_path / f"{stem}.png").exists()
