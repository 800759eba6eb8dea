"""The figures of `make staleness`, by hand."""

from __future__ import annotations

import pytest

from benchmarks.staleness import WARM_UP, timing


def row(iteration: float, wait: float, tokens: int, stale: float) -> dict:
    seconds = {"iteration": iteration, "wait": wait, "train": 1.0, "publish": 0.5}
    return {
        "seconds": seconds, "tokens_generated": tokens, "staleness_mean": stale, "staleness_max": 1,
    }  # fmt: skip


def test_shares_are_of_the_whole_time_and_the_first_iterations_are_left_out():
    slow_start = [row(100.0, 99.0, 1, 0.0)] * WARM_UP
    figures = timing([*slow_start, row(2.0, 0.5, 300, 1.0), row(6.0, 3.5, 500, 0.5)])
    assert figures["iteration"]["median"] == 4.0
    assert figures["tokens_per_second"] == 100.0
    assert figures["learner_waits"] == 0.5
    assert figures["learner_trains"] == 0.25
    assert figures["publishing"] == pytest.approx(0.125)
    assert figures["staleness_mean"] == 0.75
