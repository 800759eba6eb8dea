"""Comparison of methods: win, tie and loss worked by hand, intervals and tests by formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs.errors import UserError
from evaluation.experiment import (
    adjusted,
    check_bases,
    compare,
    mean_interval,
    paired_t,
    paired_test,
    row,
    within,
)
from evaluation.experiment_chart import draw, draw_curves, mean_curve
from evaluation.experiment_page import markdown
from evaluation.intervals import wilson
from evaluation.replication import find, questions, share_of_gain


def bits(text: str) -> np.ndarray:
    return np.array([bit == "1" for bit in text])


def run_of(folder: Path, before: str, after: str) -> Path:
    """A run that answered so, in two families by turns."""
    folder.mkdir(parents=True)
    for when, text in (("before", before), ("after", after)):
        stored = {"answers": [], "right": bits(text).tolist(), "unverified": 0}
        (folder / f"heldout-{when}.json").write_text(json.dumps(stored))
    families = {
        name: {
            "n": len(before[place::2]),
            "before": float(bits(before[place::2]).mean()),
            "after": float(bits(after[place::2]).mean()),
        }
        for place, name in enumerate(("even", "odd"))
    }
    (folder / "summary.json").write_text(json.dumps({"heldout": {"families": families}}))
    return folder


@pytest.fixture
def figures(tmp_path: Path) -> dict:
    """Three methods on two seeds, GRPO a chain's first stage."""
    base = {0: "11000000", 1: "11110000"}
    first = {0: "10111100", 1: "11111000"}
    second = {0: "11111110", 1: "11111100"}
    grpo = {s: run_of(tmp_path / f"{s}/grpo", base[s], first[s]) for s in (0, 1)}
    then = {s: run_of(tmp_path / f"{s}/then", first[s], second[s]) for s in (0, 1)}
    runs = {
        "base": {0: [], 1: []},
        "grpo": {s: [grpo[s]] for s in (0, 1)},
        "grpo_lsp": {s: [grpo[s], then[s]] for s in (0, 1)},
    }
    return compare(runs, grpo)


def test_win_tie_and_loss_are_counted_problem_by_problem():
    # Base:  1 1 0 0 0 0 0 0, after: 1 0 1 1 1 1 0 0: four won, one lost, three the same.
    assert row(bits("11000000"), bits("10111100")) == {
        "heldout": 5 / 8, "win": 4 / 8, "tie": 3 / 8, "loss": 1 / 8
    }  # fmt: skip


def test_a_chain_is_compared_with_the_base_and_not_with_the_stage_before(figures):
    rows = figures["methods"]["grpo_lsp"]["seeds"]
    assert [(one["seed"], one["heldout"], one["win"], one["loss"]) for one in rows] == [
        (0, 7 / 8, 5 / 8, 0.0),
        (1, 6 / 8, 2 / 8, 0.0),
    ]


def test_the_base_ties_with_itself_and_has_the_rates_before_training(figures):
    (one, _) = figures["methods"]["base"]["seeds"]
    assert one == {
        "seed": 0, "heldout": 0.25, "win": 0.0, "tie": 1.0, "loss": 0.0, "invented": 0,
        "families": {"even": 0.25, "odd": 0.25},
    }  # fmt: skip


def test_the_results_have_the_promised_form(figures):
    assert set(figures) == {"n", "methods", "means", "tests"}
    assert figures["n"] == 8
    for method in figures["methods"].values():
        assert set(method) == {"seeds", "mean", "ci95"}
        for one in method["seeds"]:
            assert set(one) == {"seed", "heldout", "families", "win", "tie", "loss", "invented"}
            assert one["win"] + one["tie"] + one["loss"] == pytest.approx(1)
    pairs = [(one["method"], one["against"]) for one in figures["tests"]]
    assert pairs == [("grpo", "base"), ("grpo_lsp", "base"), ("grpo_lsp", "grpo")]
    json.dumps(figures, allow_nan=False)


def test_the_interval_is_students_t():
    # Mean 0.6, standard deviation 0.1, three seeds: 4.30265 × 0.1 / √3.
    mean, ci95 = mean_interval([0.5, 0.6, 0.7])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert mean == pytest.approx(0.6)
    assert ci95 == pytest.approx([0.6 - half, 0.6 + half], abs=1e-6)
    assert mean_interval([0.5]) == (0.5, None)
    assert mean_interval([]) == (None, None)


def test_an_interval_stays_where_rates_and_differences_can_be():
    # Means 0.95 and 0.9, half-widths 4.30265 × 0.05 / √3 and 12.706 × 0.1.
    half = 4.302653 * 0.05 / math.sqrt(3)
    assert mean_interval([0.9, 0.95, 1.0])[1] == pytest.approx([0.95 - half, 1.0], abs=1e-6)
    assert mean_interval([0.0, 0.2])[1] == [0.0, 1.0]
    found = paired_test("a", "b", {0: 1.0, 1: 0.8}, {0: 0.0, 1: 0.0}, difference)
    assert found is not None
    assert found["ci95"] == [pytest.approx(0.9 - 12.706205 * 0.1, abs=1e-6), 1.0]
    found = paired_test("b", "a", {0: 0.0, 1: 0.0}, {0: 1.0, 1: 0.8}, difference)
    assert found is not None
    assert found["ci95"][0] == -1.0


def difference(others: float, mine: float) -> dict:
    return {"difference": mine - others, "p": None}


def test_paired_t_of_hand_worked_differences():
    # 1, 2, 3: mean 2, standard error 1/√3, t = 2√3 with two degrees of freedom.
    t, p = paired_t([1.0, 2.0, 3.0])
    assert t == pytest.approx(2 * math.sqrt(3))
    assert p == pytest.approx(0.0741799, abs=1e-6)
    assert paired_t([0.1, 0.1]) == (None, None)
    assert paired_t([0.1]) == (None, None)


def test_mcnemars_exact_test_of_hand_worked_changes():
    # Five gained and one lost: 2 · (1 + 6) / 2⁶.
    found = within(bits("1000000"), bits("0111110"))
    assert (found["gained"], found["lost"]) == (5, 1)
    assert found["p"] == pytest.approx(14 / 64)
    assert found["difference"] == pytest.approx(4 / 7)
    assert within(bits("10"), bits("10"))["p"] == 1.0


def test_only_shared_seeds_are_paired_test():
    mine, others = {0: bits("11"), 1: bits("10")}, {1: bits("00"), 2: bits("00")}
    found = paired_test("a", "b", mine, others, within)
    assert found is not None
    assert [one["seed"] for one in found["seeds"]] == [1]
    assert paired_test("a", "b", {0: bits("1")}, {1: bits("1")}, within) is None


def test_p_values_are_adjusted_over_the_tests_that_have_one():
    found = adjusted([{"p": 0.01}, {"p": None}, {"p": 0.04}])
    assert [one["p_adjusted"] for one in found] == [pytest.approx(0.02), None, pytest.approx(0.04)]


def test_p_values_within_a_seed_are_adjusted_over_that_seeds_tests(figures):
    for seed in (0, 1):
        rows = [row for one in figures["tests"] for row in one["seeds"] if row["seed"] == seed]
        assert len(rows) == 3
        expected = [one["p_adjusted"] for one in adjusted([{"p": row["p"]} for row in rows])]
        assert [row["p_adjusted"] for row in rows] == expected


def test_families_have_means_with_intervals_over_the_seeds(figures):
    cells = figures["means"]["heldout"]["grpo_lsp"]
    assert list(cells) == ["overall", "even", "odd"]
    mean, ci95 = mean_interval([7 / 8, 6 / 8])
    assert cells["overall"] == {"mean": mean, "ci95": ci95, "over": "seeds"}
    # The second stage leaves 1111 and 1110 in even places, 1110 twice in odd ones.
    mean, ci95 = mean_interval([1.0, 0.75])
    assert cells["even"] == {"mean": mean, "ci95": ci95, "over": "seeds"}
    assert "| grpo_lsp | 87.5 (" in markdown(figures)


def test_one_seed_has_intervals_over_its_problems(tmp_path):
    run = run_of(tmp_path / "grpo", "11000000", "10111100")
    found = compare({"base": {0: []}, "grpo": {0: [run]}}, {0: run})
    cells = found["means"]["heldout"]["grpo"]
    assert cells["overall"] == {"mean": 5 / 8, "ci95": list(wilson(5, 8)), "over": "problems"}
    assert cells["odd"] == {"mean": 0.5, "ci95": list(wilson(2, 4)), "over": "problems"}
    assert found["methods"]["grpo"]["ci95"] is None
    text = markdown(found)
    assert "over the problems and not over seeds" in text
    assert "| grpo | base | +37.5 (" in text
    assert "Over the seeds" not in text


def test_first_stages_that_did_not_begin_alike_are_not_compared(tmp_path):
    a, b = run_of(tmp_path / "a", "1100", "1111"), run_of(tmp_path / "b", "1010", "1111")
    check_bases({0: [a, a], 1: [b]})
    with pytest.raises(UserError, match=r"a and .*b did not solve the same held-out problems"):
        check_bases({0: [a, a], 1: [a, b]})


def test_runs_of_other_problems_are_not_paired_test(tmp_path):
    base, other = run_of(tmp_path / "a", "1100", "1100"), run_of(tmp_path / "b", "11", "11")
    with pytest.raises(UserError, match="has 2 held-out problems and"):
        compare({"m": {0: [other]}}, {0: base})
    with pytest.raises(UserError, match="measured no held-out problems"):
        compare({"m": {0: [tmp_path]}}, {0: base})


def test_share_of_grpos_gain():
    def seeds(*rates: float) -> dict:
        return {"seeds": [{"seed": i, "heldout": rate} for i, rate in enumerate(rates)]}

    methods = {"base": seeds(0.4, 0.5), "grpo": seeds(0.6, 0.7), "lsp": seeds(0.5, 0.6)}
    found = share_of_gain(methods, "lsp")
    assert found is not None
    assert found["share"] == pytest.approx(0.5)
    assert found["ci95"] == pytest.approx([0.5, 0.5])
    worse = {**methods, "grpo": seeds(0.3, 0.5)}
    assert share_of_gain(worse, "lsp") == {"share": None, "ci95": None, "seeds": [0, 1]}
    assert share_of_gain({"base": seeds(0.4)}, "lsp") is None


def test_the_questions_are_answered_from_the_figures(figures):
    answers = questions(figures, {})
    adds = answers["does_self_play_add_to_grpo"]
    # (7 − 5) / 8 and (6 − 5) / 8.
    assert adds["difference"] == pytest.approx((2 / 8 + 1 / 8) / 2)
    turned = find(figures["tests"], "base", "grpo_lsp")
    forth = find(figures["tests"], "grpo_lsp", "base")
    assert turned is not None
    assert forth is not None
    assert turned["difference"] == -forth["difference"]
    assert turned["ci95"] == [-forth["ci95"][1], -forth["ci95"][0]]


def test_the_page_shows_every_method_and_what_is_missing(figures, tmp_path):
    text = markdown(figures, ["x was skipped"])
    assert "| grpo_lsp | 2 | 81.2 |" in text
    assert "- x was skipped" in text
    none = {
        **figures,
        "methods": {**figures["methods"], "lsp": {"seeds": [], "mean": None, "ci95": None}},
        "means": {"heldout": {**figures["means"]["heldout"], "lsp": compare_none()}},
    }
    assert "| lsp | 0 | – | – |" in markdown(none)
    draw(none, {}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def compare_none() -> dict:
    return compare({"lsp": {}}, {})["means"]["heldout"]["lsp"]


@pytest.mark.parametrize(("v", "bottom"), [([0.5, 1.0], 0.0), ([-4.0, -2.0], None)])
def test_a_curve_below_zero_is_not_cut_off(v, bottom):
    axes = Figure().add_subplot()
    draw_curves(axes, {"a": {0: {"v": v}}}, "v", {"a": "red"})
    low, high = axes.get_ylim()
    assert low == bottom if bottom is not None else low < -4.0 < high


def test_the_mean_of_curves_leaves_out_what_is_unknown():
    np.testing.assert_array_equal(mean_curve([[1.0, None], [3.0, None, 4.0]]), [2.0, np.nan, 4.0])
