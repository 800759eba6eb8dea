"""Greedy solve rate on problems that training never uses, before and after a run."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from actors.generator import Generator
from actors.records import GenerationRequest, Sampling, TokenIds
from evaluation.intervals import Booleans, paired_difference, wilson

log = logging.getLogger(__name__)

RIGHT = 1.0
"""What a verifier gives a right answer."""


class Problem(NamedTuple):
    """A problem that training never uses."""

    query: str
    family: str
    reference: str | None = None


Verify = Callable[[Sequence[tuple[str, str, str | None]]], Awaitable[Sequence[float | None]]]
"""Scores each (query, answer, reference), None where it could not (`rewards.killable`)."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """The greedy answers to the problems, and which are right [n].

    `unverified` of those that are not right could not be verified: the verifier hung or failed.
    """

    answers: tuple[str, ...]
    right_n: Booleans
    unverified: int

    @property
    def rate(self) -> float:
        """Share of the problems solved."""
        return float(self.right_n.mean())


async def evaluate(
    generator: Generator,
    problems: Sequence[Problem],
    encode: Callable[[str], TokenIds],
    sampling: Sampling,
    verify: Verify,
) -> Outcome:
    """Answer every problem greedily and verify; `encode` makes the Solver's prompt.

    Of `sampling` only the token limit and the stop texts are used.
    """
    greedy = Sampling(temperature=0.0, max_tokens=sampling.max_tokens, stop=sampling.stop)
    requests = [GenerationRequest(encode(problem.query), greedy) for problem in problems]
    answers = tuple(completion.text for completion in await generator.generate(requests))
    pairs = zip(problems, answers, strict=True)
    scores = await verify([(one.query, answer, one.reference) for one, answer in pairs])
    unverified = sum(score is None for score in scores)
    if unverified:
        log.warning(
            "the verifier of problems hung or failed on %d of %d answers; they count as wrong",
            unverified,
            len(answers),
        )
    right = [score is not None and score >= RIGHT for score in scores]
    return Outcome(answers, np.array(right, bool), unverified)


def normalised(query: str) -> str:
    """What counts as the same problem where nothing better is known: the words, case aside."""
    return " ".join(query.split()).casefold()


def summarise(
    problems: Sequence[Problem],
    before: Outcome,
    after: Outcome,
    invented: Collection[str],
    identity: Callable[[str], str] = normalised,
) -> dict[str, Any]:
    """The `heldout` of summary.json, in fractions.

    `invented` are the texts of the Challenger's trained queries; a held-out problem among them
    (by `identity`) was trained on without being given. `unverified_before` and `unverified_after`
    count the answers that the verifier hung or failed on, which count as wrong.
    """
    unseen_n = ~_found(problems, invented, identity)
    n = len(problems)
    without = after.right_n[unseen_n]
    return {
        "n": n,
        "before": before.rate,
        "after": after.rate,
        "difference": after.rate - before.rate,
        "ci95_before": list(wilson(int(before.right_n.sum()), n)),
        "ci95_after": list(wilson(int(after.right_n.sum()), n)),
        "ci95_difference": list(paired_difference(before.right_n, after.right_n)),
        "invented_by_challenger": int((~unseen_n).sum()),
        "after_without_invented": float(without.mean()) if without.size else None,
        "unverified_before": before.unverified,
        "unverified_after": after.unverified,
        "families": families(problems, before, after),
    }


def leaked(
    problems: Sequence[Problem],
    dataset_queries: Iterable[str],
    identity: Callable[[str], str] = normalised,
) -> int:
    """How many held-out problems are among the queries of the data set, by `identity`.

    Nothing is filtered by the held-out set, so the run trains on them: the figures must say so.
    """
    return int(_found(problems, dataset_queries, identity).sum())


def _found(
    problems: Sequence[Problem], queries: Iterable[str], identity: Callable[[str], str]
) -> Booleans:
    """Which problems are among the queries [n]."""
    seen = {identity(query) for query in queries}
    return np.array([identity(problem.query) in seen for problem in problems], bool)


def families(
    problems: Sequence[Problem], before: Outcome, after: Outcome
) -> dict[str, dict[str, float]]:
    """Solve rates by family: {family: {n, before, after}}."""
    family_n = np.array([problem.family for problem in problems])
    return {
        str(family): {
            "n": int((family_n == family).sum()),
            "before": float(before.right_n[family_n == family].mean()),
            "after": float(after.right_n[family_n == family].mean()),
        }
        for family in np.unique(family_n)
    }
