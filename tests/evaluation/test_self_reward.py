"""What a judge said in a run's games, against numbers worked by hand."""

from __future__ import annotations

import pytest

from evaluation import self_reward
from evaluation.self_reward import beside_the_verifier


def rows(group: str, query: str, *answers: tuple[float, float | None]) -> list[dict]:
    written = {"role": "challenger", "group_id": group, "text": query, "admitted": True}
    of = {"role": "solver", "group_id": group, "text": "", "admitted": True}
    return [
        written | {"reward_parts": {}, "quality": None},
        *(of | {"reward_parts": {"solved": r}, "quality": q} for r, q in answers),
    ]


@pytest.fixture
def said(monkeypatch, tmp_path):
    def said(*iterations: list[dict]):
        history = [{"iteration": i} for i in range(len(iterations))]
        monkeypatch.setattr(self_reward, "read_history", lambda _: history)
        monkeypatch.setattr(self_reward, "read_games", lambda _, which, __: iterations[which[0]])
        return beside_the_verifier([tmp_path], "solved", lambda query: query == "a task")

    return said


def test_it_is_taken_within_groups(said):
    found = said(
        [*rows("a", "a task", (1, 7), (0, 7)), *rows("b", "none", (0, 2), (0, 6))],
        # One verdict alone is no group.
        rows("c", "a task", (1, 6), (0, None)),
    )
    # Within the groups R varies by 1/4 and 0, R_Q by 0 and 4; never together.
    assert found == {
        "variance_r": 0.125,
        "variance_r_q": 2.0,
        "correlation": 0.0,
        "v_q_of_tasks": 7.0,
        "v_q_of_others": 4.0,
    }


def test_a_judge_that_knows_right_from_wrong_correlates(said):
    found = said([*rows("a", "a task", (1, 7), (0, 5)), *rows("b", "a task", (0, 1), (1, 3))])
    assert found is not None
    assert found["correlation"] == pytest.approx(1.0)
    assert found["v_q_of_others"] is None


def test_without_a_judge_there_is_nothing(said):
    assert said(rows("a", "a task", (1, None), (0, None))) is None
