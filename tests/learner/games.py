"""Small groups with chosen rewards, and the configuration to train them with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.records import Completion, Group, Query, Scores, Verdict
from configs.schema import RunConfig


def completion(rng: np.random.Generator, length: int, prompt: int = 4, **fields: Any) -> Completion:
    """Random tokens that are no control tokens."""
    return Completion(
        prompt_token_ids=rng.integers(6, 300, prompt).astype(np.int32),
        token_ids=rng.integers(6, 300, length).astype(np.int32),
        text="",
        finish_reason="stop",
        version_min=0,
        version_max=0,
        seed=0,
        **fields,
    )


def group(
    rewards: list[float],
    *,
    seed: int = 0,
    verdicts: list[int | None] | None = None,
    asked: bool = True,
    reject_reason: str | None = None,
) -> Group:
    """A group whose part `solved` is `rewards`, its completions of unequal lengths."""
    rng = np.random.default_rng(seed)
    query = completion(rng, int(rng.integers(3, 9))) if asked else None
    return Group(
        query=Query(f"g{seed}", "a query", completion=query),
        answers=tuple(
            completion(rng, int(rng.integers(2, 14)), int(rng.integers(3, 7))) for _ in rewards
        ),
        scores=Scores(
            {"solved": np.array(rewards, dtype=float)},
            tuple(Verdict(score, "") for score in verdicts or []),
        ),
        reject_reason=reject_reason,
    )


def lsp_groups() -> list[Group]:
    """Four groups of unequal lengths, one with an answer longer than a micro-batch."""
    groups = [
        group([1, 0], seed=1, verdicts=[6, 4]),
        group([1, 1], seed=2, verdicts=[7, None]),
        group([0, 0], seed=3, verdicts=[0, 3], asked=False),
    ]
    rng = np.random.default_rng(9)
    long = group([0, 1], seed=4, verdicts=[2, 2])
    return [*groups, replace(long, answers=(completion(rng, 90), long.answers[1]))]


def run_config(model: Path | str = "none", **overrides: Any) -> RunConfig:
    """LSP-Zero with one verifier part, short limits and one float32 learner rank.

    `learner` is merged into the section, other keys replace theirs.
    """
    learner = {
        "cpus": 1,
        "dtype": "float32",
        "zero_stage": 0,
        "learning_rate": 1e-3,
        "micro_batch_tokens": 64,
        "step_deadline_s": 120,
    } | overrides.pop("learner", {})
    settings: dict[str, Any] = {
        "algorithm": "lsp_zero",
        "run_dir": "runs/test",
        "queries": 3,
        "answers": 2,
        "model": {"path": str(model)},
        "challenger": {"reward": "minus_v", "alpha": 0.5, "sampling": {"max_tokens": 10}},
        "solver": {"sampling": {"max_tokens": 20, "temperature": 0.7}},
        "rewards": {
            "parts": [{"kind": "verifier", "name": "solved", "function": "a:b"}],
            "quality": None,
        },
        "learner": learner,
    }
    return RunConfig.model_validate(settings | overrides)


LSP: dict[str, Any] = {
    "algorithm": "lsp",
    "challenger": {"reward": "quality", "alpha": 0.5, "sampling": {"max_tokens": 10}},
    "rewards": {
        "parts": [{"kind": "verifier", "name": "solved", "function": "a:b", "weight": 2.0}],
        "quality": {"weight": 0.5},
    },
}
"""Overrides that make `run_config` the paper's LSP, with a weight on each part."""
