"""Guards: rows of bad iterations, alarms, and figures that are named wrongly."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cluster.guards import Guards, figure, last_good
from configs.errors import UserError
from configs.guards import GuardConfig
from configs.load import load
from tests.configs.test_load import QUICKSTART

KL = {"metric": "learner.kl_solver", "above": 1.0, "patience": 3}


def line(iteration: int, kl: float | None, admitted: float = 1.0) -> dict:
    return {
        "iteration": iteration,
        "learner": {"kl_solver": kl},
        "admitted_share": admitted,
        "rejected": {},
        "development": {},
    }


def alarms(guards: Guards, values: list[float | None], first: int = 0) -> list[int]:
    """The iterations that set off an alarm."""
    return [i for i, kl in enumerate(values, first) for _ in guards.check(line(i, kl))]


def test_an_alarm_needs_a_row_of_bad_iterations_and_sounds_again_after_as_many_more():
    guards = Guards([GuardConfig(**KL)], [])
    assert alarms(guards, [2, 2, 0.5, 2, 2, 2, 2, 2, 2, 1.0, 2, 2, 2]) == [5, 8, 12]


def test_the_alarm_knows_where_its_row_began():
    guards = Guards([GuardConfig(**KL)], [])
    found = [
        alarm.began for i, kl in enumerate([0, *[2] * 6]) for alarm in guards.check(line(i, kl))
    ]
    assert found == [1, 1]


def test_an_alarm_of_a_rare_figure_began_with_its_first_bad_value():
    guards = Guards([GuardConfig(metric="learner.kl_solver", above=1, patience=2)], [])
    said = [guards.check(line(i, 2.0 if i % 5 == 4 else None)) for i in range(10)]
    assert [alarm.began for alarms in said for alarm in alarms] == [4]


def test_a_rollback_may_go_back_to_before_any_row_that_is_open():
    def guards_of(action: str, values: list[float]) -> Guards:
        settings = ["learner.learning_rate=1e-6"] if action == "rollback" else []
        guard = GuardConfig(
            metric="learner.kl_solver", above=1, patience=9, action=action, set=settings
        )
        return Guards([guard], [line(i, value) for i, value in enumerate(values)])

    assert guards_of("stop", [0, 2, 2]).rollback_began(3) == []
    assert guards_of("rollback", [0, 2, 2]).rollback_began(3) == [1, 3]
    assert guards_of("rollback", [2, 2, 0]).rollback_began(3) == [3]


@pytest.mark.parametrize(
    ("began", "staleness", "good"), [(5, 0, 4), (5, 2, 2), (0, 0, 0), (1, 1, 0)]
)
def test_the_last_good_checkpoint_played_nothing_bad(began, staleness, good):
    assert last_good(began, staleness) == good
    # What checkpoint t's model plays ends before the bad row, unless it is the very first.
    assert good == 0 or good + staleness < began


def test_an_iteration_without_the_figure_changes_nothing():
    guards = Guards([GuardConfig(**KL)], [])
    assert alarms(guards, [2, None, 2, None, 2]) == [4]


def test_a_resumed_run_stands_where_it_stood():
    history = [line(i, 2.0) for i in range(2)]
    assert alarms(Guards([GuardConfig(**KL)], history), [2.0], first=2) == [2]
    assert alarms(Guards([GuardConfig(**KL)], [*history, line(2, 2.0)]), [2.0], first=3) == []


def test_too_little_is_an_alarm_too_and_the_gravest_comes_first():
    low = GuardConfig(metric="admitted_share", below=0.5, patience=1)
    back = GuardConfig(**KL | {"patience": 1}, action="rollback", set=["learner.kl.coefficient=1"])
    (first, second) = Guards([low, back], []).check(line(7, 2.0, 0.25))
    assert (first.guard, second.guard) == (back, low)
    assert str(first) == "learner.kl_solver is 2, above 1 ever since iteration 7"
    assert str(second) == "admitted_share is 0.25, below 0.5 ever since iteration 7"


@pytest.mark.parametrize("metric", ["learner.kl_solvr", "kl", "learner", "admitted_share.x"])
def test_a_figure_that_no_iteration_has_is_named(metric):
    guards = Guards([GuardConfig(metric=metric, above=0)], [])
    with pytest.raises(UserError, match=rf"^guards\.0\.metric: no iteration has a .*{metric}"):
        guards.check(line(0, 0.0))


def test_what_is_measured_now_and_then_may_be_absent_and_then_not_be_misspelt():
    assert figure(line(0, 0.0), "development.solved", "key") is None
    measured = line(0, 0.0) | {"development": {"solved": 0.5}}
    with pytest.raises(UserError, match=r"key: no iteration has a figure 'development\.solvd'"):
        figure(measured, "development.solvd", "key")


def test_a_count_that_is_absent_is_zero_and_ends_a_row():
    counts = [5, None, 6, None, None, 4, 4, 4]
    rows = [
        line(i, 0.0) | {"rejected": {} if count is None else {"echo": count}}
        for i, count in enumerate(counts)
    ]
    guards = Guards([GuardConfig(metric="rejected.echo", above=3, patience=3)], [])
    assert [[alarm.began for alarm in guards.check(row)] for row in rows] == [*[[]] * 7, [5]]
    few = Guards([GuardConfig(metric="dropped.nan_reward", below=1, patience=1)], [])
    assert len(few.check(line(0, 0.0) | {"dropped": {}})) == 1


@pytest.mark.parametrize("name", ["dropped.nan", "rejected.cutoff", "rejected.task"])
def test_a_count_that_there_never_is_is_no_zero(name):
    with pytest.raises(UserError, match=f"guards.0.metric: .*no '{name.partition('.')[2]}'"):
        Guards([GuardConfig(metric=name, above=3)], []).check(line(0, 0.0) | {"dropped": {}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"metric": "v"}, "exactly one of above and below"),
        ({"metric": "v", "above": 1, "below": 0}, "exactly one of above and below"),
        ({"metric": "v", "above": 1, "action": "rollback"}, "set goes with action rollback"),
        ({"metric": "v", "above": 1, "set": ["seed=1"]}, "set goes with action rollback"),
    ],
)
def test_guards_that_make_no_sense_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        GuardConfig(**values)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("learner.learning_rat=1", "learner.learning_rat"),
        ("queries=64", "queries"),
        ("learner.learning_rate=-1", "learner.learning_rate"),
    ],
)
def test_a_rollback_to_settings_that_cannot_be_is_refused_when_read(setting, words):
    guard = f"guards=[{{metric: v, above: 1, action: rollback, set: ['{setting}']}}]"
    with pytest.raises(UserError, match=words):
        load(QUICKSTART, [guard])
