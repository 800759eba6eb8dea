"""A step of two DeepSpeed ranks against the equations in plain PyTorch, in one process."""

from __future__ import annotations

import pytest

from tests.learner.games import LSP, run_config
from tests.learner.plain import hold_to_plain_pytorch


@pytest.mark.parametrize(
    ("stage", "tied", "clip", "more"),
    [
        (0, True, 0.3, {}),  # as the quickstart has it, on more than one rank
        (1, True, 0.3, {"gradient_checkpointing": True}),
        (2, False, 0.3, {}),
        (3, True, 0.3, {"gradient_checkpointing": True}),  # as the presets of Llama-3.2 have it
        # On a GPU the optimiser is another one too: test_equality_gpu.py.
        (2, True, 0.3, {"offload": True}),
        (3, False, 0.0, {"offload": True}),
    ],
)
def test_two_ranks_equal_plain_pytorch(ray_session, tiny_model, stage, tied, clip, more):
    settings = {"ranks": 2, "zero_stage": stage, "gradient_clip": clip, "logprob_chunk": 16} | more
    path = tiny_model(tied)
    hold_to_plain_pytorch(run_config(path, **LSP, learner=settings, queries=4), path)
