"""How long stages took, from summaries and logs made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.experiment_time import covered, times


def stage(run_dir: Path, wall_s: dict[str, float], *log: str) -> Path:
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "summary.json").write_text(json.dumps({"wall_s": wall_s}))
    (run_dir / "logs" / "driver.log").write_text("".join(f"{line}\n" for line in log))
    return run_dir


def test_stages_are_added_up_and_those_side_by_side_count_once_by_the_clock(tmp_path):
    one = stage(
        tmp_path / "one",
        {"base_model": 60.0, "setup": 20.0, "train": 100.0},
        "2026-11-28 14:00:00,500 INFO run=one: waiting until it serves",
        "2026-11-28 14:02:00,500 ERROR run=one: a fault",
        "Traceback (most recent call last):",
        "2026 was its year",
    )
    # From 14:01:00.5, within the other, to 14:02:30.25.
    two = stage(
        tmp_path / "two",
        {"base_model": 0.0, "setup": 15.0, "train": 70.0},
        "2026-11-28 14:01:00,500 INFO run=two: waiting until it serves",
        "2026-11-28 14:02:30,250 INFO run=two: iteration 9",
    )
    # An hour later, after a pause.
    three = stage(
        tmp_path / "three",
        {"setup": 4.0, "train": 5.0},
        "2026-11-28 15:00:00,000 INFO run=three: waiting until it serves",
        "2026-11-28 15:00:10,000 INFO run=three: iteration 9",
    )
    found = times({"one": one, "two": two, "three": three})
    assert found["stages"]["two"] == {"base_model": 0.0, "setup": 15.0, "train": 70.0}
    assert found["stages_s"] == 180 + 85 + 9
    # A minute of the base model, 2 min 29.75 s, and ten seconds.
    assert found["clock_s"] == pytest.approx(60 + 149.75 + 10)


def test_without_a_stages_log_the_clock_is_not_known(tmp_path):
    one = stage(tmp_path / "one", {"setup": 20.0, "train": 100.0})
    found = times({"one": one})
    assert (found["stages_s"], found["clock_s"]) == (120.0, None)
    (one / "logs" / "driver.log").unlink()
    assert times({"one": one})["clock_s"] is None


def test_time_that_two_spans_hold_counts_once():
    assert covered([(5.0, 6.0), (0.0, 3.0), (1.0, 2.0), (2.5, 4.0)]) == 5.0
    assert covered([]) == 0.0
