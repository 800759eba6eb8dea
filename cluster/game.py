"""Algorithm 1 of Language Self-Play as a pipeline.

    for each iteration:
        N queries from the source, G answers to each, both rewards     (cluster.round)
        one training step on the N groups                              (learner)
        the new weights to every engine                                (publisher)

Rounds are played ahead of training as far as the staleness rule admits, and trained in their
order: iteration r trains round r. A full batch of later groups never overtakes a round that waits
for one long answer, so answers are not filtered by their length, no group is trained more than k
versions after it was begun, and the composition of a batch does not depend on timing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from actors.logs import note
from actors.records import Group, Rejected
from cluster.faults import Streak
from cluster.record import IterationRecord, StepOutcome, summarise
from cluster.round import Answers, RoundInPlay, Scorer, Table, slot_of
from cluster.seeds import Ticket
from cluster.sources import QuerySource
from cluster.staleness import Staleness, check_age
from configs.schema import RunConfig
from rewards.reward import first_problem

log = logging.getLogger(__name__)


class Learner(Protocol):
    """The learner (`learner.group`)."""

    async def step(self, groups: list[Group], iteration: int) -> StepOutcome:
        """Train one gradient step on the N groups of an iteration."""
        ...


class Weights(Protocol):
    """The engines as receivers of weights (`cluster.players.Policy`)."""

    def weights_move(self) -> AbstractAsyncContextManager[None]:
        """Hold while the learner's weights and the engines' differ."""
        ...

    async def publish(self, version: int) -> float:
        """Give the engines the learner's weights; how far the worst one's probe is off, in nats."""
        ...


class GameLedger(Protocol):
    """The ledger (`cluster.ledger`)."""

    def write(
        self,
        iteration: int,
        groups: Sequence[Group],
        rejected: Sequence[Rejected],
        outcome: StepOutcome,
    ) -> None:
        """Keep an iteration's rows."""
        ...


@dataclass(frozen=True)
class Pending:
    """What was generated and not trained: whole groups, and the rejected queries before them."""

    groups: list[Group] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


class Game:
    """A run, from `iteration` on. Invariant: a group is trained once, or pending, or unmade."""

    def __init__(
        self,
        config: RunConfig,
        *,
        source: QuerySource,
        solver: Answers,
        scorers: Sequence[Scorer],
        weights: Weights,
        learner: Learner,
        ledger: GameLedger,
        iteration: int = 0,
        pending: Pending | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.learner = learner
        self.ledger = ledger
        self.iteration = iteration
        """Iterations trained, which is also the version of the learner's weights."""
        self.stop = asyncio.Event()
        """Set it to end the game after the step in hand."""
        self._held = pending or Pending()
        self.staleness = Staleness(
            config.staleness,
            config.queries,
            version=iteration,
            accepted=iteration * config.queries + len(self._held.groups),
        )
        self._bad_steps = Streak(
            "training steps with a bad loss",
            "faults.bad_steps",
            config.faults.bad_steps,
        )
        self._table = Table(
            source,
            solver,
            scorers,
            config.queries,
            config.challenger.rejected == "worst",
            functools.partial(
                first_problem, parts=config.rewards.parts, judged=config.rewards.quality is not None
            ),
            self.staleness,
            Streak("groups dropped", "faults.bad_groups", config.faults.bad_groups),
        )
        self._probe_difference = math.nan
        self._doing = ""
        self._rounds: dict[int, RoundInPlay] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def play(self) -> AsyncGenerator[IterationRecord]:
        """Play to the last iteration or to `stop`; yield a record after each.

        Whenever it is suspended, stopped, or ended by RunError (too much went wrong in a row),
        `iteration`, `pending()`, the ledger and the learner agree and can be saved. After any
        other error the last checkpoint is the place to go on from.
        """
        try:
            self._begin_rounds()
            started, seconds = time.perf_counter(), defaultdict[str, float](float)
            while self.iteration < self.config.iterations:
                with _timed(seconds, "wait"):
                    round_ = await self._whole_round()
                if round_ is None:
                    return
                outcome = await self._train(round_, seconds)
                if not outcome.applied:
                    self._play_again(round_, outcome.bad_groups)
                    continue
                self._bad_steps.good()
                self._begin_rounds()
                yield self._record(round_, outcome, started, seconds)
                started, seconds = time.perf_counter(), defaultdict[str, float](float)
        finally:
            await self._cancel_rounds()

    @property
    def awaited(self) -> str:
        """What the game waits for, in words."""
        round_ = self._rounds.get(self.iteration)
        if self._doing or round_ is None:
            return self._doing or "the next round"
        missing, queries = len(round_.missing()), self.config.queries
        return f"{missing} of the {queries} groups of iteration {self.iteration + 1}"

    def pending(self) -> Pending:
        """What a checkpoint must keep so that no group is lost."""
        rounds = [self._rounds[number] for number in sorted(self._rounds)]
        groups = [group for round_ in rounds for group in round_.batch()]
        # Empty slots are drawn again, and what the gate rejects for them then is kept then.
        rejected = [
            one
            for round_ in rounds
            for one in round_.rejected
            if slot_of(one.query) in round_.groups
        ]
        return Pending(groups + self._held.groups, rejected + self._held.rejected)

    async def _train(self, round_: RoundInPlay, seconds: dict[str, float]) -> StepOutcome:
        """One gradient step on the round's groups, and the new weights to the engines.

        A step that is not applied changes nothing.
        """
        groups, iteration = round_.batch(), self.iteration
        check_age(groups, iteration, self.config.staleness)
        async with self.weights.weights_move():
            with _timed(seconds, "train"), self._at(f"the step of iteration {iteration + 1}"):
                outcome = await self.learner.step(groups, iteration)
            if not outcome.applied:
                return outcome
            self._count_trained(round_)
            writing = asyncio.create_task(
                asyncio.to_thread(self.ledger.write, iteration, groups, round_.rejected, outcome)
            )
            try:
                with _timed(seconds, "publish"), self._at(f"version {self.iteration}'s publish"):
                    self._probe_difference = await self.weights.publish(self.iteration)
            finally:
                await writing
        return outcome

    @contextlib.contextmanager
    def _at(self, what: str) -> Iterator[None]:
        """What is awaited in the meantime."""
        self._doing = what
        try:
            yield
        finally:
            self._doing = ""

    def _count_trained(self, round_: RoundInPlay) -> None:
        del self._rounds[round_.number], self._tasks[round_.number]
        self.iteration += 1
        self.staleness.train()

    def _play_again(self, round_: RoundInPlay, bad: list[int]) -> None:
        """Play others in the place of the groups with a bad loss, or of all where none is named.

        Raises RunError after too many such steps in a row.
        """
        round_.discard(bad or range(self.config.queries))
        self._bad_steps.bad(f"iteration {round_.number}: groups {bad or 'all'} had a bad loss")
        self._play(round_)

    def _record(
        self,
        round_: RoundInPlay,
        outcome: StepOutcome,
        started: float,
        seconds: dict[str, float],
    ) -> IterationRecord:
        phases = dict(seconds) | {
            "generate": round_.answered - round_.begun,
            "reward": round_.scored - round_.answered,
            "iteration": time.perf_counter() - started,
        }
        parts = self.config.rewards.parts
        return summarise(
            round_.number,
            round_.batch(),
            round_.rejected,
            outcome,
            parts,
            round_.dropped,
            self._probe_difference,
            phases,
        )

    def _begin_rounds(self) -> None:
        """Begin the rounds that the staleness rule admits, each whole."""
        ahead = self.iteration + self.config.staleness + 1
        for number in range(self.iteration, min(ahead, self.config.iterations)):
            if number in self._rounds:
                continue
            round_ = RoundInPlay(number, self._table, *self._taken_up(number))
            missing = len(round_.missing())
            self.staleness.submit(missing)
            self._rounds[number] = round_
            self._play(round_)

    def _play(self, round_: RoundInPlay) -> None:
        name = f"round {round_.number}"
        self._tasks[round_.number] = asyncio.create_task(round_.play(), name=name)

    def _taken_up(self, number: int) -> tuple[list[Group], list[Rejected]]:
        """Take what the checkpoint held of a round."""
        groups = [g for g in self._held.groups if _round_of(g) == number]
        rejected = [
            r for r in self._held.rejected if Ticket.parse(r.query.group_id).round == number
        ]
        self._held = Pending(
            [g for g in self._held.groups if g not in groups],
            [r for r in self._held.rejected if r not in rejected],
        )
        return groups, rejected

    async def _whole_round(self) -> RoundInPlay | None:
        """The next round to train, once it is whole; None when asked to stop before it is.

        A round further ahead that fails raises its error at once.
        """
        note(iteration=self.iteration, version=self.iteration)
        log.info("iteration %d: waiting for its %d groups", self.iteration, self.config.queries)
        stopping = asyncio.create_task(self.stop.wait())
        try:
            while not self.stop.is_set():
                for task in self._tasks.values():
                    if task.done():
                        task.result()
                if self._tasks[self.iteration].done():
                    return self._rounds[self.iteration]
                running = [task for task in self._tasks.values() if not task.done()]
                await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        return None

    async def _cancel_rounds(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def _round_of(group: Group) -> int:
    return Ticket.parse(group.query.group_id).round


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] += time.perf_counter() - started
