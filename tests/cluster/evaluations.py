"""A random model and a run of it, for the tests of `selfplay evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.initial import initial_model
from configs.load import load, save_resolved
from learner.checkpoint import CheckpointStore
from tests.conftest import ROOT
from tests.models import save_causal_model

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def roomy_model(folder: Path, seed: int = 0) -> Path:
    """A model with room for a benchmark's prompt in a tokenizer of bytes."""
    path = save_causal_model(folder, tied=True, seed=seed) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 2048}))
    return folder


def run_with_checkpoint(folder: Path, model: Path, seed: int = 1) -> Path:
    """A run of that model with one checkpoint, which holds other weights, made with `seed`."""
    config = load(
        QUICKSTART,
        [f"run_dir={folder}", "model.make=null", f"model.path={model}",
         "solver.system=Be brief.", "rollout.context=320", "model.chat_date=2025-01-02"],
    )  # fmt: skip
    save_resolved(config, folder)
    initial_model(config)
    with CheckpointStore(folder / "checkpoints", 2).writing(7) as draft:
        roomy_model(draft.folder / "hf", seed)
    return folder
