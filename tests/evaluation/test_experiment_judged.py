"""Methods compared by what AlpacaEval said of their last stages."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import UserError
from evaluation.alpaca.bootstrap import bootstrap_mean
from evaluation.experiment_chart import draw
from evaluation.experiment_judged import compare_judged
from evaluation.experiment_page import markdown
from tests.evaluation.synthetic import judge

WIN, TIE, LOSS = 2.0, 1.5, 1.0


def rows_of(preferences: Sequence[float | None], first: int = 0) -> list[dict[str, Any]]:
    """Verdicts on so many instructions, of two subsets by turns."""
    return [
        {
            "instruction": f"Instruction {i}",
            "dataset": ("koala", "vicuna")[i % 2],
            "output_1": "one",
            "output_2": "two",
            "generator_1": "base",
            "generator_2": "trained",
            "annotator": "j",
            "preference": preference,
        }
        for i, preference in enumerate(preferences, first)
    ]


def judged(run_dir: Path, wins: int, checkpoint: int = 9, **others: object) -> Path:
    """A run whose checkpoint won so many of ten, with two ties."""
    preferences = [WIN] * wins + [TIE] * 2 + [LOSS] * (8 - wins)
    return judge(run_dir, checkpoint, rows_of(preferences), **others)


def compare(runs: dict[str, dict[int, list[Path]]]) -> dict[str, Any]:
    found = compare_judged(runs)
    assert found is not None
    json.dumps(found, allow_nan=False)
    return found


def test_rates_are_fractions_of_the_last_checkpoint_of_the_last_stage(tmp_path):
    first = judged(tmp_path / "first", 0)
    last = judged(judged(tmp_path / "last", 3, checkpoint=100), 8, checkpoint=25)
    (last / "checkpoints" / "100").mkdir(parents=True)
    found = compare({"base": {0: []}, "chain": {0: [first, last]}})
    (row,) = found["methods"]["chain"]["seeds"]
    # Of ten, three won and two tied: 3 + 2 / 2 with a tie as half, 3 with a tie as a loss.
    subsets = row.pop("subsets")
    assert row == {
        "seed": 0, "checkpoint": 100, "n": 10, "win_rate": 0.4, "win_rate_ties_as_losses": 0.3,
        "win": 0.3, "tie": 0.2, "loss": 0.5, "families": {"koala": 0.5, "vicuna": 0.3},
    }  # fmt: skip
    assert subsets["koala"]["win_rate_ties_as_losses"] == pytest.approx(0.4)
    assert found["methods"]["base"]["seeds"] == []
    assert found["tests"] == []
    assert found["n"] == 10


def test_methods_are_paired_by_seed(tmp_path):
    wins = {"a": (1, 2), "b": (4, 6)}
    runs = {
        name: {seed: [judged(tmp_path / f"{name}{seed}", n)] for seed, n in enumerate(each)}
        for name, each in wins.items()
    }
    found = compare(runs)
    (one,) = found["tests"]
    assert (one["method"], one["against"]) == ("b", "a")
    assert one["difference"] == pytest.approx(0.35)
    # Differences 0.3 and 0.4: t = 0.35 / 0.05 with one degree of freedom.
    assert one["t"] == pytest.approx(7.0)
    assert found["means"]["win_rate"]["b"]["overall"]["over"] == "seeds"


def test_within_a_seed_methods_are_paired_by_instruction(tmp_path):
    mine, others = [WIN] * 14 + [TIE] * 2 + [LOSS] * 4, [LOSS] * 6 + [WIN] * 8 + [TIE] * 6
    a, b = (judge(tmp_path / n, 9, rows_of(p)) for n, p in (("a", others), ("b", mine)))
    found = compare({"a": {0: [a]}, "b": {0: [b]}})
    for key, gains in (
        ("tests", [1.0] * 6 + [0.0] * 10 + [-0.5] * 4),
        # A tie is a loss then, so the last four are the same.
        ("tests_ties_as_losses", [1.0] * 6 + [0.0] * 14),
    ):
        (one,) = found[key]
        assert (one["t"], one["p"], one["ci95"]) == (None, None, None)
        (row,) = one["seeds"]
        gains_n = np.array(gains)
        assert row["n"] == 20
        assert row["difference"] == pytest.approx(gains_n.mean())
        assert row["ci95"] == pytest.approx(bootstrap_mean(gains_n))
        t = gains_n.mean() / (gains_n.std(ddof=1) / math.sqrt(20))
        assert row["t"] == pytest.approx(t)
        assert row["p_adjusted"] == row["p"]


def test_one_seed_has_intervals_over_instructions_by_subset(tmp_path):
    found = compare({"a": {0: [judged(tmp_path / "a", 4)]}})
    for rate in ("win_rate", "win_rate_ties_as_losses"):
        cells = found["means"][rate]["a"]
        assert list(cells) == ["overall", "koala", "vicuna"]
        for cell in cells.values():
            assert cell["over"] == "instructions"
            assert cell["ci95"][0] < cell["mean"] < cell["ci95"][1]
    assert found["methods"]["a"]["ci95"] is None


def test_the_page_names_both_rates_and_what_an_interval_is_over(tmp_path):
    runs = {
        name: {0: [judged(tmp_path / name, wins)]}
        for name, wins in (("base", 2), ("a", 4), ("b", 6))
    }
    found = compare(runs)
    text = markdown(found, ["c is missing"])
    head = "| method | seeds | ties as half | 95% interval | ties as losses | 95% interval |"
    assert head in text
    assert "win rate with a tie as a loss in percentage points" in text
    assert "over the instructions and not over seeds" in text
    assert "Over the seeds" not in text
    assert "| b | base | +40.0 (+" in text
    assert "- c is missing" in text
    draw(found, {}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_one_judge_that_was_asked_in_two_ways_is_two_judges(tmp_path):
    def asked(verdict: str) -> dict[str, Any]:
        return {"settings": {"judge": {"model": "j", "verdict": verdict}}}

    runs = {
        name: {0: [judged(tmp_path / name, 4, **asked(verdict))]}
        for name, verdict in (("a", "tag"), ("b", "logprobs"))
    }
    with pytest.raises(UserError, match="differ in the judge's verdict: evaluate them alike"):
        compare_judged(runs)
    runs["b"] = {0: [judged(tmp_path / "c", 4, **asked("tag"))]}
    assert compare(runs)["judge"] == "j"


def test_seeds_that_share_a_judgement_have_one_row_and_are_paired_all_the_same(tmp_path):
    base = judged(tmp_path / "base", 2)
    a = {seed: [judged(tmp_path / f"a{seed}", 4 + seed)] for seed in (0, 1)}
    found = compare({"base": {0: [base], 1: [base]}, "a": a})
    assert [row["seed"] for row in found["methods"]["base"]["seeds"]] == [0]
    assert found["means"]["win_rate"]["base"]["overall"]["over"] == "instructions"
    (one,) = found["tests"]
    assert [row["seed"] for row in one["seeds"]] == [0, 1]


def reasons(runs: dict[str, dict[int, list[Path]]]) -> dict[str, str]:
    found = compare(runs)
    shown = {name for name, one in found["methods"].items() if one["seeds"]}
    left_out = {one["method"]: one["reason"] for one in found["unjudged"]}
    assert shown.isdisjoint(left_out)
    return left_out


def test_an_unfinished_judgement_is_left_out_and_named(tmp_path):
    half = {"judging": {"n_without_verdict": 3, "n_pairs": 13}}
    runs = {"a": {0: [judged(tmp_path / "a", 4)]}, "b": {0: [judged(tmp_path / "b", 4, **half)]}}
    assert reasons(runs) == {
        "b": "has no verdict yet on 3 of 13 pairs, and the same command continues"
    }


def test_a_judgement_on_other_instructions_is_left_out_and_named(tmp_path):
    runs = {
        "a": {0: [judge(tmp_path / "a", 9, rows_of([WIN, LOSS, TIE]))]},
        "fewer": {0: [judge(tmp_path / "b", 9, rows_of([WIN, LOSS]))]},
        "others": {0: [judge(tmp_path / "c", 9, rows_of([WIN, LOSS, TIE], first=1))]},
        "b": {0: [judge(tmp_path / "d", 9, rows_of([LOSS, LOSS, WIN]))]},
    }
    found = reasons(runs)
    assert list(found) == ["fewer", "others"]
    assert found["fewer"].startswith("was judged on 2 of the 3 instructions of the others and on 0")
    assert found["others"].startswith(
        "was judged on 2 of the 3 instructions of the others and on 1"
    )


def test_a_checkpoint_that_is_not_the_last_is_left_out_and_named(tmp_path):
    old = judged(tmp_path / "old", 4, checkpoint=25)
    (old / "checkpoints" / "100").mkdir(parents=True)
    runs = {"a": {0: [judged(tmp_path / "a", 4)]}, "old": {0: [old]}, "not": {0: [tmp_path]}}
    assert reasons(runs) == {
        "old": "has been judged at checkpoint 25 and not at its last, 100",
        "not": "has not been judged",
    }


def test_a_pair_without_a_verdict_is_said_and_not_paired(tmp_path):
    rows = rows_of([WIN, LOSS, None, None])
    rows[-1]["refusal"] = "400: too long"
    runs = {
        "a": {0: [judge(tmp_path / "a", 9, rows)]},
        "b": {0: [judge(tmp_path / "b", 9, rows_of([LOSS, LOSS, WIN, WIN]))]},
    }
    found = compare(runs)
    assert found["unjudged"] == []
    assert found["tests"][0]["seeds"][0]["n"] == 2
    (note,) = found["notes"]
    assert note == (
        "a, seed 0: 2 of 4 pairs have no verdict and count in no rate (1 missing, 1 refused)"
    )
    assert note in markdown(found)


def test_results_of_two_judges_are_not_compared(tmp_path):
    runs = {
        "a": {0: [judged(tmp_path / "a", 1)]},
        "b": {0: [judged(tmp_path / "b", 1, judge="other")]},
    }
    with pytest.raises(UserError, match=r"not of one judge \(j, other\)"):
        compare_judged(runs)


def test_nothing_judged_is_none(tmp_path):
    assert compare_judged({"base": {0: []}, "a": {0: [tmp_path]}}) is None
