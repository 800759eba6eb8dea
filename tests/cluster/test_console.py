"""What a person sees of a run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from cluster.console import HEADER_EVERY, Console, duration, header, line, summary_text
from configs.load import load
from tests.evaluation.synthetic import PRESETS, SUMMARY, records


@pytest.fixture(scope="module")
def record():
    config = load(PRESETS / "quickstart.yaml", ["queries=4", "answers=4"])
    (made,) = records(config, 1)
    return dataclasses.replace(
        made,
        iteration=9,
        version=10,
        reward_solver=5.5,
        reward_challenger=5.3751,
        v=0.5,
        v_quality=5.0,
        learner={"kl_solver": 0.0123, "kl_challenger": 0.1},
        admitted=4,
        rejected={"duplicate": 2, "empty": 1},
        tokens_per_second=12345.6,
        seconds={"iteration": 1.26},
    )


def test_a_line_holds_what_matters(record):
    cells = line(record, 150, 3725).split()
    assert cells == [
        *("10/150", "5.500", "5.375", "0.500", "5.000", "0.0123", "0.1000"),
        *("4", "of", "7", "12,346", "10", "1.3", "1h", "02m"),
    ]


def test_columns_stand_under_their_heads_and_fit_a_terminal(record):
    head, row = header()[-1], line(record, 150, 3725)
    assert len(head) <= 112
    for name, value in (("version", "10"), ("tokens/s", "12,346"), ("V_Q", "5.000")):
        end = head.index(name) + len(name)
        assert row[:end].endswith(value)
    assert "admitted tokens/s" in " ".join(head.split())


def test_what_there_is_no_value_for_is_a_dash(record):
    lonely = dataclasses.replace(record, reward_challenger=math.nan, v_quality=math.nan, learner={})
    assert line(lonely, 150, 0).split().count("–") == 4


def test_the_header_comes_back_and_the_eta_goes_by_recent_iterations(record):
    console = Console(iterations=1000)
    shown = [console.lines(dataclasses.replace(record, iteration=i)) for i in range(60)]
    assert [i for i, lines in enumerate(shown) if len(lines) > 1] == [
        0, HEADER_EVERY, 2 * HEADER_EVERY,
    ]  # fmt: skip
    # The pace changes from 1.26 s to 2 s; ten iterations later the ETA knows nothing else.
    for i in range(60, 70):
        slow = dataclasses.replace(record, iteration=i, seconds={"iteration": 2.0})
        last = console.lines(slow)[0]
    assert last.endswith(duration(2.0 * (1000 - 70)))


def test_the_last_iteration_has_nothing_left(record):
    (*_, last) = Console(10).lines(record)
    assert last.endswith(" 0s")


def test_dropped_groups_are_told_under_the_line(record):
    dropped = dataclasses.replace(record, dropped={"reward part solved is NaN or infinite": 2})
    *_, note = Console(10).lines(dropped)
    assert (
        note.strip() == "2 groups dropped and played again: reward part solved is NaN or infinite"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0s"), (59.6, "1m 00s"), (65, "1m 05s"), (7800, "2h 10m"), (273600, "3d 4h")],
)
def test_durations_read_as_a_person_says_them(seconds, said):
    assert duration(seconds) == said


def test_the_summary_says_what_came_of_it():
    text = summary_text(SUMMARY, Path("runs/quickstart"))
    for words in (
        *("40 iterations of lsp, seed 0", "1,000 problems", "64.4%", "(61.4 to 67.3)", "78.9%"),
        *("+14.5 points (+11.8 to +17.2), better", "invented 12 of them", "78.7% after"),
        *("setup 21s, base model 1m 15s, train 2m 41s", "2,345,678 generated"),
        "runs/quickstart/report.html",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def test_what_makes_the_held_out_rate_doubtful_is_said():
    doubtful = SUMMARY["heldout"] | {"in_dataset": 3, "unverified_before": 1, "unverified_after": 4}
    text = summary_text(SUMMARY | {"heldout": doubtful}, Path("r"))
    assert "3 of them are in source.dataset" in text
    assert "failed on 5 answers" in text
    for said in ("source.dataset", "failed on"):
        assert said not in summary_text(SUMMARY, Path("r"))


@pytest.mark.parametrize(
    ("interval", "said"), [([-0.03, -0.01], "worse"), ([-0.01, 0.02], "within chance")]
)
def test_the_summary_does_not_boast(interval, said):
    heldout = SUMMARY["heldout"] | {"ci95_difference": interval}
    text = summary_text(SUMMARY | {"heldout": heldout}, Path("r"))
    assert f", {said}" in text
    assert "better" not in text


def test_a_run_without_held_out_problems_has_a_summary_too():
    text = summary_text(SUMMARY | {"heldout": None}, Path("r"))
    assert "Solved" not in text
