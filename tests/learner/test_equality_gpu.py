"""A step on a GPU with the optimiser in CPU memory, against plain PyTorch (`make test-gpu`).

In a process of its own, for the reason that `tests/cluster/test_run_gpu.py` gives.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch

from cluster.connection import connect
from tests.conftest import ROOT
from tests.learner.games import LSP, run_config
from tests.learner.plain import hold_to_plain_pytorch


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("stage", [2, 3])
def test_a_learner_that_offloads_equals_plain_pytorch(tiny_model, stage):
    arguments = [str(tiny_model(True)), str(stage)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.learner.test_equality_gpu", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]


def main(path: Path, stage: int) -> None:
    """Compare, or raise AssertionError."""
    # Its optimiser's kernel is compiled in the first step.
    settings = {"gpus": 1, "zero_stage": stage, "gradient_clip": 0.3, "step_deadline_s": 500}
    settings |= {"offload": True, "logprob_chunk": 16}
    connect()
    try:
        hold_to_plain_pytorch(run_config(path, **LSP, learner=settings, queries=4), path)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
