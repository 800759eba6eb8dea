"""An experiment on the real engines: a chain of two stages, the second from the first's export."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.experiment import run_experiment
from cluster.experiment_results import figures_of
from configs.experiments import ExperimentConfig
from playground.base_model import build
from playground.training import Recipe

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SMALL = [
    "rewards.quality=null",
    "rewards.parts.0.function=tests.cluster.length:score",
    "queries=4",
    "answers=4",
    "iterations=2",
    "heldout.n=24",
    "gate.task_verifier=null",
    "rollout.threads=1",
    "learner.threads=1",
    # Enough for two steps to change greedy answers.
    "learner.learning_rate=3e-3",
]
ZERO = [
    "algorithm=lsp_zero",
    "challenger.reward=minus_v",
    "challenger.learnability_part=null",
]


def outcome(run_dir: Path, when: str) -> dict:
    return json.loads((run_dir / f"heldout-{when}.json").read_text())


def test_the_second_stage_begins_where_the_first_ended(tmp_path):
    model = build(0, tmp_path, Recipe(tokens=150_000, batch_tokens=512, threads=1))
    data = tmp_path / "problems.jsonl"
    source = f"source={{kind: dataset, dataset: {{path: {data}}}}}"
    start = ["model.make=null", f"model.path={model}"]
    grpo = {
        "name": "grpo",
        "config": QUICKSTART,
        "set": [*SMALL, "algorithm=grpo", source, *start],
    }
    zero = {"name": "zero", "config": QUICKSTART, "set": [*SMALL, *ZERO]}
    config = ExperimentConfig.model_validate(
        {
            "experiment_dir": tmp_path / "runs",
            "seeds": [0],
            "methods": {"base": [], "grpo": [grpo], "grpo_zero": [grpo, zero]},
            "data": {data: "playground.training_problems:write"},
        }
    )
    assert run_experiment(config) == []
    first, second = (tmp_path / "runs" / "seed-0" / name for name in ("grpo", "grpo+zero"))
    began = json.loads((second / "model.json").read_text())
    assert Path(began["path"]) == first / "checkpoints" / "2" / "hf"
    assert outcome(first, "before")["answers"] != outcome(first, "after")["answers"]
    assert outcome(second, "before")["answers"] == outcome(first, "after")["answers"]
    figures, curves = figures_of(config)
    assert [len(one["seeds"]) for one in figures["methods"].values()] == [1, 1, 1]
    assert len(curves["grpo_zero"][0]["v"]) == 2
