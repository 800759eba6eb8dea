"""Rewards and advantages against numbers worked by hand, and over the right axes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.records import Verdict
from learner import assembly
from learner.advantages import (
    STD_EPSILON,
    Outcome,
    RunningMoments,
    assign_credit,
    centred,
    challenger_reward,
    quality_scores,
    solver_rewards,
)
from learner.group import _result as result_of
from learner.rank import RankReport
from tests.learner.games import LSP, group, run_config


def credit_of(groups, config, divide_by_std=False):
    rewards = assembly.raw_rewards(groups, config)
    earned = assembly.outcomes(groups, rewards, config)
    return assign_credit(earned, divide_by_std=divide_by_std)


def test_lsp_by_hand():
    # R = 2·solved. Group 0: R = [2, 0], R_Q = [6, 4]; group 1: R = [2, 2], R_Q = [7, 1].
    groups = [
        group([1, 0], seed=1, verdicts=[6, 4]),
        group([1, 1], seed=2, verdicts=[7, 1]),
    ]
    credit = credit_of(groups, run_config(**LSP))
    # Solver: R + ½ R_Q = [5, 2] and [5.5, 2.5], centred in their own group.
    np.testing.assert_allclose(credit.rewards_solver, [[5, 2], [5.5, 2.5]])
    np.testing.assert_allclose(credit.advantages_solver, [[1.5, -1.5], [1.5, -1.5]])
    # Challenger: −V + ½ V_Q = −1 + 2.5 and −2 + 2, centred over the queries.
    np.testing.assert_allclose(credit.rewards_challenger, [1.5, 0.0])
    np.testing.assert_allclose(credit.advantages_challenger, [0.75, -0.75])


def test_lsp_zero_advantage_is_mean_value_minus_value():
    groups = [group([1, 0], seed=1), group([1, 1], seed=2), group([0, 0], seed=3)]
    credit = credit_of(groups, run_config())
    values = np.array([0.5, 1.0, 0.0])
    np.testing.assert_allclose(credit.advantages_challenger, values.mean() - values)


def test_each_role_is_centred_over_its_own_axis():
    rng = np.random.default_rng(0)
    rewards_NG = rng.normal(size=(5, 3))
    credit = assign_credit(
        [Outcome(r, challenger=float(-r.mean())) for r in rewards_NG], divide_by_std=False
    )
    np.testing.assert_allclose(np.stack(credit.advantages_solver).sum(axis=1), 0, atol=1e-12)
    assert np.abs(np.stack(credit.advantages_solver).sum(axis=0)).min() > 1e-3
    assert credit.advantages_challenger.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("solved", "expected"), [([0, 0], 0.0), ([1, 1], 0.0), ([1, 0], 0.5), ([1, 1, 1, 0], 0.25)]
)
def test_learnability_is_highest_in_the_middle(solved, expected):
    solved_G = np.array(solved, dtype=float)
    quality_G = np.full(len(solved), 4.0)
    got = challenger_reward("learnability", -10 * solved_G, quality_G, 0.1, solved_G)
    assert got == pytest.approx(expected + 0.4)


def test_learnability_reads_the_raw_part_not_the_weighted_sum():
    config = run_config(
        **LSP
        | {
            "challenger": {"reward": "learnability", "learnability_part": "solved"},
        }
    )
    # R is 2·solved; a p out of the weighted sum would be 1 and min(p, 1 − p) 0.
    credit = credit_of(
        [group([1, 0], seed=1, verdicts=[0, 0]), group([1, 1], seed=2, verdicts=[0, 0])], config
    )
    np.testing.assert_allclose(credit.rewards_challenger, [0.5, 0.0])


def test_reward_forms_without_quality():
    reward_G = np.array([1.0, 2.0])
    assert challenger_reward("minus_v", reward_G, None, 1.0) == -1.5
    assert challenger_reward("quality", reward_G, np.array([4.0, 6.0]), 0.5) == 1.0
    np.testing.assert_array_equal(solver_rewards(reward_G, None, 1.0), reward_G)
    with pytest.raises(ValueError, match="learnability needs"):
        challenger_reward("learnability", reward_G, None, 1.0)


def test_missing_verdict_counts_as_mean_of_the_parsed():
    scores = quality_scores([Verdict(7, ""), Verdict(None, ""), Verdict(2, "")])
    np.testing.assert_array_equal(scores, [7, 4.5, 2])
    with pytest.raises(ValueError, match="parsable"):
        quality_scores([Verdict(None, ""), Verdict(None, "")])


def test_standard_deviation_as_trl_has_it():
    np.testing.assert_allclose(
        centred(np.array([1.0, 3.0]), divide_by_std=True),
        np.array([-1.0, 1.0]) / (math.sqrt(2) + STD_EPSILON),
    )
    np.testing.assert_array_equal(centred(np.array([2.0, 2.0]), divide_by_std=True), [0, 0])


def test_rejected_queries_get_the_lowest_reward_and_count_in_the_mean():
    groups = [
        group([1, 0], seed=1),
        group([0, 0], seed=2),
        group([], seed=3, reject_reason="echo"),
    ]
    credit = credit_of(groups, run_config())
    np.testing.assert_allclose(credit.rewards_challenger, [-0.5, 0.0, -0.5])
    np.testing.assert_allclose(credit.advantages_challenger, np.array([-0.5, 1, -0.5]) / 3)
    assert credit.advantages_solver[2].size == 0


def test_data_queries_have_no_challenger_term_and_are_not_in_its_mean():
    groups = [group([1, 0], seed=1), group([1, 1], seed=2, asked=False), group([0, 0], seed=3)]
    credit = credit_of(groups, run_config())
    np.testing.assert_allclose(credit.advantages_challenger, [-0.25, math.nan, 0.25])


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        credit_of([group([1, math.nan], seed=1), group([0, 1], seed=2)], run_config())


def test_kl_in_the_reward_is_subtracted_before_the_mean():
    groups = [group([1, 0], seed=1), group([1, 1], seed=2)]
    config = run_config(learner={"kl": {"place": "reward", "estimator": "k1"}})
    places = assembly.slots(groups, config)
    kl = {i: float(i) for i in range(len(places))}  # query 0, answers 1 2, query 3, answers 4 5
    rewards = assembly.raw_rewards(groups, config)
    earned = assembly.penalised(assembly.outcomes(groups, rewards, config), places, kl, 0.1)
    credit = assign_credit(earned, divide_by_std=False)
    np.testing.assert_allclose(credit.rewards_solver, [[0.9, -0.2], [0.6, 0.5]])
    np.testing.assert_allclose(credit.advantages_solver, [[0.55, -0.55], [0.05, -0.05]])
    np.testing.assert_allclose(credit.rewards_challenger, [-0.5, -1.3])


def test_running_moments_equal_those_of_all_values_at_once():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 5, size=37)
    moments = RunningMoments()
    for part in np.split(values, [5, 5, 20]):
        moments = moments.updated(part)
    assert moments.mean == pytest.approx(values.mean())
    assert moments.std == pytest.approx(values.std())
    restored = RunningMoments.from_state(moments.state_dict())
    np.testing.assert_array_equal(restored.standardise(values), moments.standardise(values))
    assert RunningMoments().updated(np.ones(4)).standardise(np.ones(2)).tolist() == [0, 0]


def test_quality_as_a_gate_multiplies_what_can_be_learnt():
    solved_G = np.array([1.0, 0.0, 0.0, 0.0])
    quality_G = np.array([7.0, 7.0, 0.0, 0.0])
    gated = challenger_reward("learnability", solved_G, quality_G, 9.0, solved_G, gated=True)
    assert gated == pytest.approx(0.25 * 0.5)
    worthless = challenger_reward(
        "learnability", solved_G, 0 * quality_G, 9.0, solved_G, gated=True
    )
    assert worthless == 0.0


def test_a_baseline_per_task_centres_each_task_by_itself():
    rewards = [1.0, 3.0, 10.0, 20.0, 7.0]
    outcomes = [Outcome(np.array([r, -r]), challenger=r) for r in rewards]
    tasks = ["a", "a", "b", "b", "alone"]
    credit = assign_credit(outcomes, divide_by_std=False, tasks=tasks)
    np.testing.assert_allclose(credit.advantages_challenger, [-1, 1, -5, 5, 0])
    of_data = [*outcomes[:4], Outcome(np.array([0.0, 1.0]), challenger=None)]
    credit = assign_credit(of_data, divide_by_std=False, tasks=["a", "a", "b", "b", "b"])
    np.testing.assert_allclose(credit.advantages_challenger, [-1, 1, -5, 5, np.nan])


def test_queries_alone_in_their_task_are_counted():
    of_data = Outcome(np.array([0.0, 1.0]), challenger=None)
    outcomes = [Outcome(np.array([r, -r]), challenger=r) for r in (1.0, 3.0, 7.0)] + [of_data]

    def share(*tasks):
        credit = assign_credit(outcomes, divide_by_std=False, tasks=tasks)
        return assembly.reward_metrics([], credit, tasks)["alone_in_task"]

    assert share("a", "a", "a", "b") == 0
    assert share("a", "a", "b", "b") == pytest.approx(1 / 3)  # the other b is not the Challenger's
    assert share("a", "b", "c", "c") == 1
    nobody = assign_credit([of_data, of_data], divide_by_std=False, tasks=["a", "a"])
    assert math.isnan(assembly.reward_metrics([], nobody, ["a", "a"])["alone_in_task"])
    assert "alone_in_task" not in assembly.reward_metrics([], nobody, None)


def test_tasks_count_only_where_the_configuration_says_so():
    groups = [group([1, 0], seed=1), group([1, 1], seed=2)]
    assert assembly.tasks_of(groups, run_config()) is None
    per_task = run_config(challenger={"reward": "minus_v", "baseline": "task"})
    assert assembly.tasks_of(groups, per_task) == [g.query.task for g in groups]


@pytest.mark.parametrize(("alpha", "trained"), [(0.5, True), (0.0, False)])
def test_a_query_that_is_not_trained_has_a_reward_and_no_advantage(alpha, trained):
    groups = [group([1, 0], seed=1), group([1, 1], seed=2)]
    config = run_config(challenger={"reward": "minus_v", "alpha": alpha})
    report = RankReport({}, [], applied=True)
    credit, places = credit_of(groups, config), assembly.slots(groups, config)
    result = result_of([report], {}, {}, credit, places)
    assert result.rewards_challenger.tolist() == [-0.5, -1.0]
    expected = [0.25, -0.25] if trained else [math.nan, math.nan]
    np.testing.assert_array_equal(result.advantages_challenger, expected)
