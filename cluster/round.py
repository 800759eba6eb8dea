"""One round: N slots, each filled with a query, its answers and their scores, and nothing waits
for what it does not need.

A query goes to the Solver as soon as the gate admits it, its answers go to all scorers at once.
A group that comes out flawed is dropped, and its slot is filled anew after the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.records import Completion, Group, Query, Rejected, Scores
from cluster.faults import Streak
from cluster.seeds import Ticket
from cluster.sources import QuerySource, Round
from cluster.staleness import Staleness

NONE_ADMITTED = "none_admitted"
BAD_LOSS = "bad_loss"

log = logging.getLogger(__name__)


class Answers(Protocol):
    """The Solver."""

    async def answer(self, ticket: Ticket, query: Query) -> tuple[Completion, ...]:
        """Return the G answers to a query."""
        ...


class Scorer(Protocol):
    """One part of R, or R_Q."""

    async def score(self, ticket: Ticket, query: Query, answers: Sequence[Completion]) -> Scores:
        """Return its share of the scores of the G answers."""
        ...


@dataclass(frozen=True)
class Table:
    """What rounds are played with, and the counters they share."""

    source: QuerySource
    solver: Answers
    scorers: Sequence[Scorer]
    queries: int
    train_rejected: bool  # challenger.rejected: worst
    flaw: Callable[[Scores], str | None]
    """Why a group of answers cannot be trained, or None."""
    staleness: Staleness
    flaws: Streak


class RoundInPlay:
    """The round `number` while it is played and until it is trained.

    `held` and `rejected` are what a checkpoint kept of it. Invariant: a slot is missing, or holds
    exactly one group.
    """

    def __init__(
        self, number: int, table: Table, held: Iterable[Group], rejected: Iterable[Rejected]
    ) -> None:
        self.number = number
        self.table = table
        self.groups = {slot_of(group.query): group for group in held}
        self.rejected = list(rejected)
        self.dropped: Counter[str] = Counter()
        self.begun = self.answered = self.scored = time.perf_counter()
        seen = {group.query.text for group in self.groups.values() if group.answers}
        self._drawn = Round(number, seen, _attempts(self.groups.values(), self.rejected))

    def missing(self) -> list[int]:
        """The slots without a group."""
        return [slot for slot in range(self.table.queries) if slot not in self.groups]

    def batch(self) -> list[Group]:
        """The round's groups in the order of their slots."""
        return [self.groups[slot] for slot in sorted(self.groups)]

    async def play(self) -> None:
        """Fill every slot."""
        while missing := self.missing():
            await self._fill(missing)

    def discard(self, places: Iterable[int]) -> None:
        """Empty the slots of these places of the batch: their loss was NaN or infinite."""
        batch = self.batch()
        bad = [batch[place] for place in places]
        for group in bad:
            log.warning("group %s is dropped: %s", group.query.group_id, BAD_LOSS)
            del self.groups[slot_of(group.query)]
        self.dropped[BAD_LOSS] += len(bad)
        self.table.staleness.retract(len(bad))

    async def _fill(self, slots: list[int]) -> None:
        """Play one query for each of `slots`; flawed groups leave theirs empty."""
        before = len(self.rejected)
        draws = self.table.source.queries(self._drawn, slots)
        try:
            async with asyncio.TaskGroup() as playing, contextlib.aclosing(draws):
                async for draw in draws:
                    if isinstance(draw, Rejected):
                        self.rejected.append(draw)
                    else:
                        playing.create_task(self._play_query(draw))
        except BaseExceptionGroup as failures:
            # The first failure is the cause; TaskGroup has cancelled the others.
            raise failures.exceptions[0]  # noqa: B904 (it keeps a cause of its own)
        if self.table.train_rejected:
            self._train_rejected(self.rejected[before:])

    async def _play_query(self, query: Query) -> None:
        ticket = Ticket.parse(query.group_id)
        answers = await self.table.solver.answer(ticket, query)
        self.answered = time.perf_counter()
        scorings = (scorer.score(ticket, query, answers) for scorer in self.table.scorers)
        scores = _together(await asyncio.gather(*scorings))
        self.scored = time.perf_counter()
        flaw = self.table.flaw(scores)
        if flaw is None:
            self._accept(Group(query, answers, scores))
        else:
            self._drop(query, flaw)

    def _train_rejected(self, rejected: list[Rejected]) -> None:
        """Rejected queries take their slots without answers.

        Not where the whole round was rejected: there is no lowest reward of the others then, and
        nothing to train.
        """
        if not any(group.answers for group in self.groups.values()):
            for one in rejected:
                self._drop(one.query, NONE_ADMITTED)
            return
        for one in rejected:
            self.rejected.remove(one)
            self._accept(Group(one.query, (), Scores({}), reject_reason=one.reason))

    def _accept(self, group: Group) -> None:
        self.groups[slot_of(group.query)] = group
        self.table.staleness.accept()
        self.table.flaws.good()

    def _drop(self, query: Query, flaw: str) -> None:
        log.warning("group %s is dropped: %s; query %.80r", query.group_id, flaw, query.text)
        self.dropped[flaw] += 1
        self.table.staleness.replace()
        self.table.flaws.bad(f"group {query.group_id} of iteration {self.number}: {flaw}")


def slot_of(query: Query) -> int:
    """The slot that a query plays for."""
    return Ticket.parse(query.group_id).slot


def _attempts(groups: Iterable[Group], rejected: Iterable[Rejected]) -> Counter[int]:
    """How many queries were tried for each slot: a slot that is emptied must not repeat one."""
    attempts: Counter[int] = Counter()
    for query in [*(g.query for g in groups), *(r.query for r in rejected)]:
        ticket = Ticket.parse(query.group_id)
        attempts[ticket.slot] = max(attempts[ticket.slot], ticket.attempt + 1)
    return attempts


def _together(scores: Sequence[Scores]) -> Scores:
    """The scorers' shares as one."""
    parts = {name: values_G for share in scores for name, values_G in share.parts.items()}
    return Scores(parts, tuple(verdict for share in scores for verdict in share.verdicts))
