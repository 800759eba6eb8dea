"""The curves of a run, from what it wrote."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation import report_experiment
from evaluation.experiment_chart import PANELS
from evaluation.over_time import CURVES, Rules, early_and_late, over_time
from evaluation.run_files import read_games, read_history
from tests.evaluation.synthetic import as_of_old, edit_history, make_run


def test_curves_are_those_of_the_run(tmp_path):
    run_dir = make_run(tmp_path / "run", 6)
    history = read_history(run_dir)
    curves = over_time(run_dir)
    assert curves["v"] == [record["v"] for record in history]
    assert curves["quality"] == [record["v_quality"] for record in history]
    rejected = sum(history[0]["rejected"].values())
    assert curves["admitted"][0] == pytest.approx(4 / (4 + rejected))
    games = read_games(run_dir, [0], ["role", "group_id", "reward"])
    right = [[g["reward"] for g in games if g["group_id"] == name and g["role"] == "solver"]
             for name in {g["group_id"] for g in games}]  # fmt: skip
    assert curves["informative"][0] == np.mean([len(set(each)) > 1 for each in right if each])
    # One of the four queries is the same in every iteration, the others are drawn anew.
    assert curves["new"] == [1.0, *[0.75] * 5]
    for name in ("distinct_2", "self_bleu"):
        assert curves[name] == [record["diversity"][name] for record in history]


def test_novelty_is_as_the_run_measured_it(tmp_path):
    run_dir = make_run(tmp_path / "run", 2)
    edit_history(run_dir, lambda row: row | {"diversity": {"novelty": row["iteration"] / 2}})
    assert over_time(run_dir)["novelty"] == [0.0, 0.5]


def test_a_run_of_a_version_that_did_not_measure_diversity_has_none(tmp_path):
    curves = over_time(as_of_old(make_run(tmp_path / "run", 2)))
    assert curves["self_bleu"] == [None, None]
    assert None not in curves["v"]


def test_quality_by_rules_stands_in_for_the_judge(tmp_path):
    run_dir = make_run(tmp_path / "run", 2)
    rules = Rules(
        quality=lambda _, answer: float(answer == "a b c d e f"),
        is_task=lambda query: query.startswith("Sort the letters"),
    )
    curves = over_time(run_dir, rules)
    assert curves["quality"] == pytest.approx(curves["v"])
    # The one that is the same in every iteration is none.
    assert curves["tasks"] == [0.75, 0.75]
    assert over_time(run_dir)["tasks"] == [None, None]


def test_early_and_late_are_the_first_and_last_fifth():
    curve = [1.0, 3.0, *[100.0] * 6, 5.0, None]
    assert early_and_late(curve) == {"first": 2.0, "last": 5.0}
    assert early_and_late([None] * 5) == {"first": None, "last": None}


def test_both_charts_have_a_panel_of_each_curve():
    assert set(PANELS) == set(report_experiment.PANELS) == set(CURVES)
