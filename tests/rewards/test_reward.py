"""R out of its parts, and what makes a group unusable, by hand-worked numbers."""

import math

import numpy as np
import pytest

from actors.records import Scores, Verdict
from configs.rewards import VerifierPart
from rewards.reward import combine, first_problem

PARTS = [
    VerifierPart(name="right", function="m:f", weight=2.0),
    VerifierPart(name="style", function="m:f", weight=-0.5),
    VerifierPart(name="watched", function="m:f", weight=0.0),
]


def scores(right, style, watched, verdicts=()):
    parts = {"right": right, "style": style, "watched": watched, "unused": [9.0] * len(right)}
    return Scores(
        {name: np.array(values) for name, values in parts.items()},
        tuple(Verdict(score, "") for score in verdicts),
    )


def test_weighted_sum():
    r_G = combine(scores([1.0, 0.0, 1.0], [4.0, 2.0, -2.0], [7.0, 8.0, 9.0]), PARTS)
    assert r_G.tolist() == [0.0, -1.0, 3.0]
    assert r_G.dtype == np.float64


def test_part_without_scores_is_an_error():
    with pytest.raises(ValueError, match="style"):
        combine(Scores({"right": np.zeros(2)}), PARTS)


def test_column_is_not_broadcast_against_a_row():
    with pytest.raises(ValueError, match="differ in shape"):
        combine(scores([[1.0], [2.0]], [1.0, 2.0], [1.0, 2.0]), PARTS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_bad_value_spoils_the_group_even_at_weight_zero(bad, part):
    values = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert first_problem(scores(*values), PARTS, judged=False) is None
    values[part][1] = bad
    assert first_problem(scores(*values), PARTS, judged=False) == "nan_reward"


@pytest.mark.parametrize(
    ("verdicts", "problem"),
    [([3, None], None), ([0, 0], None), ([None, None], "no_verdict"), ([], "no_verdict")],
)
def test_group_needs_one_verdict_where_quality_is_on(verdicts, problem):
    one = scores([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], verdicts)
    assert first_problem(one, PARTS, judged=True) == problem
    assert first_problem(one, PARTS, judged=False) is None
