"""Every random choice of a run follows from its seed and from what it is for, never from timing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

import numpy as np


class Purpose(Enum):
    """What a seed is for: two purposes never share one."""

    DRAW = "draw"  # which task and template
    QUERY = "query"  # sampling a query
    ANSWER = "answer"  # sampling an answer
    VERDICT = "verdict"  # sampling a quality verdict
    ORDER = "order"  # shuffling a data set
    REPLACEMENT = "replacement"  # which row of a data set stands in for another


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """The place of a query in a run: `attempt` counts the queries tried for one slot of a round.

    Round r makes the batch that iteration r trains; its slots are 0..N−1.
    """

    round: int
    slot: int
    attempt: int = 0

    @property
    def group_id(self) -> str:
        """The ticket as the ledger's `group_id`."""
        return f"{self.round:06d}-{self.slot:04d}-{self.attempt:03d}"

    @classmethod
    def parse(cls, group_id: str) -> Ticket:
        """The ticket of a `group_id`."""
        return cls(*map(int, group_id.split("-")))


@dataclass(frozen=True, slots=True)
class Seeds:
    """Seeds derived from the run's seed; the engines' samplers take them as they are."""

    run_seed: int

    def derive(self, purpose: Purpose, *place: int) -> int:
        """A seed in 0..2⁶³−1 for `purpose` at `place`, a hash of all of them."""
        return _hash(":".join(map(str, (self.run_seed, purpose.value, *place))))

    def query(self, ticket: Ticket) -> int:
        """The seed that samples a query."""
        return self.derive(Purpose.QUERY, ticket.round, ticket.slot, ticket.attempt)

    def answers(self, ticket: Ticket, answers: int) -> list[int]:
        """The seeds that sample the answers to a query."""
        return self._each(Purpose.ANSWER, ticket, answers)

    def verdicts(self, ticket: Ticket, answers: int) -> list[int]:
        """The seeds that sample the quality verdicts on those answers."""
        return self._each(Purpose.VERDICT, ticket, answers)

    def generator(self, purpose: Purpose, *place: int) -> np.random.Generator:
        """A random generator for `purpose` at `place`."""
        return np.random.default_rng(self.derive(purpose, *place))

    def _each(self, purpose: Purpose, ticket: Ticket, n: int) -> list[int]:
        place = (self.run_seed, purpose.value, ticket.round, ticket.slot, ticket.attempt)
        key = ":".join(map(str, place))
        return [_hash(f"{key}:{answer}") for answer in range(n)]


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1
