"""The held-out score: greedy, in order, and honest about what the Challenger invented."""

from __future__ import annotations

import asyncio
import functools
import logging

import numpy as np
import pytest

from actors.records import Completion, Sampling
from evaluation.heldout import Outcome, Problem, evaluate, leaked, summarise
from rewards.killable import score_apart

PROBLEMS = [Problem(f"What is {i}?", "even" if i % 2 == 0 else "odd") for i in range(150)]


class Echo:
    """Answers a prompt with its last token, late problems first; remembers what it was asked."""

    def __init__(self) -> None:
        self.requests = []

    async def generate(self, requests):
        await asyncio.sleep(0.1 / (1 + requests[0].prompt_token_ids[-1]))
        self.requests += requests
        return [
            Completion(
                r.prompt_token_ids, r.prompt_token_ids, str(r.prompt_token_ids[-1]), "stop", 0, 0, 0
            )
            for r in requests
        ]


def encode(query: str) -> np.ndarray:
    return np.array([1, int(query.split()[-1].rstrip("?"))], np.int32)


async def right_below_100(calls):
    for query, answer, reference in calls:
        assert reference is None
        assert answer in query, "an answer was given to another problem"
    return [float(int(answer) < 100) for _, answer, _ in calls]


def test_every_problem_is_answered_greedily_and_keeps_its_place():
    generator = Echo()
    sampling = Sampling(temperature=1.0, top_p=0.9, max_tokens=7, stop=("\n",), logprobs=True)
    outcome = asyncio.run(evaluate(generator, PROBLEMS, encode, sampling, right_below_100))
    assert {r.sampling for r in generator.requests} == {Sampling(0.0, 1.0, 7, ("\n",), False)}
    assert outcome.right_n.tolist() == [i < 100 for i in range(150)]
    assert outcome.rate == pytest.approx(100 / 150)
    assert outcome.unverified == 0


class Says:
    """Answers problem i with the i-th of its texts."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    async def generate(self, requests):
        prompts = [request.prompt_token_ids for request in requests]
        return [Completion(p, p, self.texts[p[-1]], "stop", 0, 0, 0) for p in prompts]


def test_a_verifier_that_hangs_or_dies_costs_that_answer_and_is_reported(caplog):
    generator = Says("true", "hang", "exit", "true", "raise", "fine", "true")
    verify = functools.partial(score_apart, "tests.rewards.verifiers:obey", 1.0, "heldout.verifier")
    with caplog.at_level(logging.WARNING, "evaluation.heldout"):
        outcome = asyncio.run(evaluate(generator, PROBLEMS[:7], encode, Sampling(1.0), verify))
    assert outcome.right_n.tolist() == [True, False, False, True, False, False, True]
    assert outcome.unverified == 3
    (said,) = [r.getMessage() for r in caplog.records if r.name == "evaluation.heldout"]
    assert "hung or failed on 3 of 7 answers" in said


def outcome_of(right: np.ndarray, unverified: int = 0) -> Outcome:
    return Outcome(tuple("x" for _ in right), right, unverified)


def test_summary_in_fractions_with_families_and_invented_problems():
    before = outcome_of(np.arange(150) < 75, unverified=3)
    after = outcome_of(np.arange(150) < 90, unverified=1)
    invented = ["  what IS 80? ", "What is 149?", "What is 4711?", "What is 80?"]
    found = summarise(PROBLEMS, before, after, invented)
    assert (found["n"], found["before"], found["after"]) == (150, 0.5, 0.6)
    assert found["difference"] == pytest.approx(0.1)
    assert (found["unverified_before"], found["unverified_after"]) == (3, 1)
    assert found["invented_by_challenger"] == 2
    # 80 was solved and 149 was not: 89 of the 148 others.
    assert found["after_without_invented"] == pytest.approx(89 / 148)
    low, high = found["ci95_difference"]
    assert 0 < low < 0.1 < high
    assert found["families"]["even"] == {
        "n": 75, "before": pytest.approx(38 / 75), "after": pytest.approx(45 / 75),
    }  # fmt: skip


def digits(query: str) -> str:
    return "".join(filter(str.isdigit, query))


def test_another_identity_of_problems_can_be_given():
    outcome = outcome_of(np.ones(150, bool))
    found = summarise(PROBLEMS, outcome, outcome, ["3 is what"], identity=digits)
    assert found["invented_by_challenger"] == 1


def test_nothing_is_left_where_all_was_invented():
    outcome = outcome_of(np.ones(150, bool))
    found = summarise(PROBLEMS, outcome, outcome, [problem.query for problem in PROBLEMS])
    assert found["after_without_invented"] is None


def test_held_out_problems_among_the_queries_of_a_data_set_are_counted_once():
    queries = ["what IS  7?", "What is 7?", "What is 12?", "What is 4711?", "What is 7"]
    assert leaked(PROBLEMS, iter(queries)) == 2
    assert leaked(PROBLEMS, ["7 is what", "is 008", "nothing"], digits) == 1
    assert leaked(PROBLEMS, []) == 0
