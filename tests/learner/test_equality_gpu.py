"""A step on a GPU with the optimiser in CPU memory, against plain PyTorch (`make test-gpu`).

In a process of its own, for the reason that `tests/gpu_process.py` gives.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import ray
import torch

from cluster.connection import connect
from tests import gpu_process
from tests.learner.games import LSP, run_config
from tests.learner.plain import hold_to_plain_pytorch


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("stage", [2, 3])
def test_a_learner_that_offloads_equals_plain_pytorch(tiny_model, stage):
    gpu_process.run("tests.learner.test_equality_gpu", str(tiny_model(True)), str(stage))


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
