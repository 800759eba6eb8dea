"""Where the queries of a round come from: the Challenger, a data set, or both.

A round is asked for the slots it still has to fill. What a source gives to a slot depends on the
run's seed, the slot's ticket and the policy's weights only, never on which call returned first:
queries are judged in the order of their slots, pass by pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np

from actors.gate import Safety
from actors.records import Query, Rejected
from cluster.dataset import Row
from cluster.faults import RunError
from cluster.seeds import Purpose, Seeds, Ticket
from configs.errors import UserError
from configs.schema import ChallengerConfig, TaskConfig


@dataclass(slots=True)
class Round:
    """What has been drawn for one round: the queries admitted and the attempts of each slot."""

    number: int
    seen: set[str] = field(default_factory=set)
    attempts: Counter[int] = field(default_factory=Counter)

    def ticket(self, slot: int) -> Ticket:
        """The next ticket of a slot."""
        ticket = Ticket(self.number, slot, self.attempts[slot])
        self.attempts[slot] += 1
        return ticket


class QuerySource(Protocol):
    """Gives each slot one admitted query, besides any number of rejected ones."""

    def queries(self, round_: Round, slots: Sequence[int]) -> AsyncGenerator[Query | Rejected]:
        """Yield each query as soon as it is judged."""
        ...


class Challenges(Protocol):
    """The Challenger, as a source needs it."""

    def calls(self, tickets: Sequence[Ticket]) -> list[Sequence[Ticket]]:
        """The tickets as they are best divided over remote calls."""
        ...

    async def challenge(
        self, tickets: Sequence[Ticket], tasks: Sequence[TaskConfig]
    ) -> list[Query]:
        """One sampled query for each ticket."""
        ...


class AdmissionGate(Protocol):
    """The admission gate (`actors.gate`)."""

    async def classified(self, queries: Sequence[Query]) -> list[Safety]:
        """What the safety classifier says of queries that were sampled together."""
        ...

    async def check(self, query: Query, seen: set[str], safety: Safety | None) -> str | None:
        """None where the query may be trained on, else why not."""
        ...


class ChallengerSource:
    """Self-play: the policy writes the queries, the gate admits them.

    With `challenger.rejected: resample` a slot is tried again until the gate admits a query;
    with `worst` a rejected query is all that its slot gets.
    """

    def __init__(
        self,
        challenger: Challenges,
        gate: AdmissionGate,
        config: ChallengerConfig,
        seeds: Seeds,
    ) -> None:
        self.challenger = challenger
        self.gate = gate
        self.config = config
        self.seeds = seeds
        weights = np.array([task.weight for task in config.tasks])
        self._shares = weights / weights.sum()

    async def queries(
        self, round_: Round, slots: Sequence[int]
    ) -> AsyncGenerator[Query | Rejected]:
        """Yield queries in the order of their slots, rejected slots again in the next pass."""
        reasons: Counter[str] = Counter()
        last = ""
        left = self.config.resample_limit * len(slots)
        waiting = list(slots)
        while waiting:
            left -= len(waiting)
            if left < 0:
                raise RunError(self._limit_reached(round_, len(slots), reasons, last))
            tickets = [round_.ticket(slot) for slot in waiting]
            waiting = []
            async with contextlib.aclosing(self._sampled(tickets)) as sampled:
                async for query, safety in sampled:
                    judged = await self._judged(query, safety, round_.seen)
                    if isinstance(judged, Rejected):
                        reasons[judged.reason] += 1
                        last = query.text
                        if self.config.rejected == "resample":
                            waiting.append(Ticket.parse(query.group_id).slot)
                    yield judged

    async def _sampled(self, tickets: Sequence[Ticket]) -> AsyncGenerator[tuple[Query, Safety]]:
        """Yield the queries in the order of the tickets; the calls for them run side by side."""
        parts = self.challenger.calls(tickets)
        calls = [asyncio.ensure_future(self._classified(part)) for part in parts]
        try:
            for call in calls:
                for query, safety in await call:
                    yield query, safety
        finally:
            for call in calls:
                call.cancel()

    async def _classified(self, tickets: Sequence[Ticket]) -> list[tuple[Query, Safety]]:
        """The queries of one call, which the safety classifier reads together.

        Before any of them is judged: what it reads in one batch is then what was sampled in one
        call, whatever came back first.
        """
        tasks = [self.task(ticket) for ticket in tickets]
        queries = await self.challenger.challenge(tickets, tasks)
        return list(zip(queries, await self.gate.classified(queries), strict=True))

    def task(self, ticket: Ticket) -> TaskConfig:
        """The task and template of a ticket, drawn by weight.

        Drawn anew at each attempt: a template that can be filled in only a few ways would else
        be tried again for ever where two slots drew it.
        """
        place = (ticket.round, ticket.slot, ticket.attempt)
        generator = self.seeds.generator(Purpose.DRAW, *place)
        return self.config.tasks[generator.choice(len(self._shares), p=self._shares)]

    async def _judged(self, query: Query, safety: Safety, seen: set[str]) -> Query | Rejected:
        reason = await self.gate.check(query, seen, safety)
        if reason is not None:
            return Rejected(query, reason)
        seen.add(query.text)
        return query

    def _limit_reached(self, round_: Round, slots: int, reasons: Counter[str], last: str) -> str:
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        return (
            f"iteration {round_.number}: the gate turned away {reasons.total()} queries ({counts};"
            f" the last was {last[:80]!r}) for {slots} places, more than challenger.resample_limit"
            f" {self.config.resample_limit} allows: give challenger.tasks more room, loosen the"
            " gate, or set challenger.rejected to worst"
        )


class DatasetSource:
    """Queries out of a data set, in an order shuffled anew in each epoch.

    A row's place follows from the round and the slot, so that nothing has to be remembered
    across a resume. `per_round` may be a fraction (a mix): rounds take turns in rounding it up
    and down, so that the share holds on average. A query played in the place of a dropped one is
    any row.
    """

    def __init__(self, rows: Sequence[Row], per_round: float, seeds: Seeds) -> None:
        self.rows = rows
        self.per_round = per_round
        self.seeds = seeds
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def count(self, round_number: int) -> int:
        """How many queries of this round come out of the data set."""
        return self._first(round_number + 1) - self._first(round_number)

    async def queries(
        self, round_: Round, slots: Sequence[int]
    ) -> AsyncGenerator[Query | Rejected]:
        """Yield one row for each slot."""
        for slot in slots:
            ticket = round_.ticket(slot)
            row = self.rows[self._place(ticket)]
            round_.seen.add(row.query)
            yield Query(ticket.group_id, row.query, reference=row.reference)

    def _first(self, round_number: int) -> int:
        return math.floor(round_number * self.per_round)

    def _place(self, ticket: Ticket) -> int:
        if ticket.attempt:
            place = (ticket.round, ticket.slot, ticket.attempt)
            return int(self.seeds.generator(Purpose.REPLACEMENT, *place).integers(len(self.rows)))
        epoch, position = divmod(self._first(ticket.round) + ticket.slot, len(self.rows))
        return int(self._order(epoch)[position])

    def _shuffled(self, epoch: int) -> np.ndarray:
        return self.seeds.generator(Purpose.ORDER, epoch).permutation(len(self.rows))


class MixSource:
    """The first slots of each round from a data set, the others from the Challenger."""

    def __init__(self, dataset: DatasetSource, challenger: QuerySource) -> None:
        self.dataset = dataset
        self.challenger = challenger

    async def queries(
        self, round_: Round, slots: Sequence[int]
    ) -> AsyncGenerator[Query | Rejected]:
        """Yield the data set's queries, then the Challenger's."""
        share = self.dataset.count(round_.number)
        shares = (
            self.dataset.queries(round_, [slot for slot in slots if slot < share]),
            self.challenger.queries(round_, [slot for slot in slots if slot >= share]),
        )
        for part in shares:
            async with contextlib.aclosing(part):
                async for query in part:
                    yield query


def rows_that_fit(rows: Sequence[Row], fits: Callable[[Row], bool]) -> tuple[list[Row], int]:
    """The rows whose prompt leaves room for an answer, and how many do not.

    Raises UserError where none does.
    """
    fitting = [row for row in rows if fits(row)]
    if not fitting:
        raise UserError(
            "no row of source.dataset leaves room for an answer: raise rollout.context or lower"
            " solver.sampling.max_tokens"
        )
    return fitting, len(rows) - len(fitting)
