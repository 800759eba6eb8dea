"""The learner's side of a simulated run: training and weights that only take time, and a ledger in
memory. Rewards and advantages are the learner's own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.actor import ActorHandle

from actors.records import Group, Rejected
from benchmarks.simulated import Times
from cluster.record import StepOutcome
from cluster.seeds import Ticket
from configs.schema import RunConfig
from learner import assembly
from learner.advantages import Credit, Floats, assign_credit
from learner.publisher import PublishReport, on_each


class Publisher:
    """Weights that take their time to every member (`learner.publisher`)."""

    def __init__(self, times: Times, deadline_s: float) -> None:
        self.times = times
        self.deadline_s = deadline_s
        self.version = 0

    async def publish(self, version: int, members: Mapping[str, ActorHandle]) -> PublishReport:
        """Give every member the new version; a silent one holds it up until the deadline."""
        self.version = version
        parity, lost = await on_each(members, self._serve)
        return PublishReport(version, self.times.publish_s, 0, parity, 0, lost)

    async def catch_up(self, members: Mapping[str, ActorHandle]) -> dict[str, str]:
        """Give newcomers the version published last; the first needs nothing."""
        _, lost = await on_each(members if self.version else {}, self._serve)
        return lost

    async def _serve(self, _: str, member: ActorHandle) -> float:
        update: asyncio.Future[Any] = member.update.remote(self.version, self.times.publish_s)
        await asyncio.wait_for(update, self.deadline_s)
        return 0.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training step says of its batch."""

    rewards_solver: list[Floats]
    rewards_challenger: Floats
    advantages_solver: list[Floats]
    advantages_challenger: Floats
    applied: bool = True
    bad_groups: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    diversity: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, credit: Credit) -> Outcome:
        """The outcome of a step that was applied."""
        return cls(
            credit.rewards_solver,
            credit.rewards_challenger,
            credit.advantages_solver,
            credit.advantages_challenger,
        )


class Learner:
    """Takes its time over a batch; rewards and advantages are the learner's own."""

    def __init__(self, config: RunConfig, times: Times, members: int) -> None:
        self.config = config
        self.times = times
        self.members = members
        self.busy_s = 0.0
        self.batches: list[list[str]] = []
        """The ids of the groups of each step."""

    async def step(self, groups: list[Group], iteration: int) -> Outcome:
        """Train on a batch."""
        del iteration
        tokens = sum(len(slot.completion.token_ids) for slot in assembly.slots(groups, self.config))
        rate = self.times.trained_per_member * self.members
        seconds = self.times.step_s + tokens / rate
        await asyncio.sleep(seconds)
        self.busy_s += seconds
        self.batches.append([group.query.group_id for group in groups])
        return Outcome.of(credit_of(groups, self.config))


class Books:
    """The ledger: what was trained, in memory."""

    def __init__(self) -> None:
        self.iterations: list[list[Group]] = []
        self.rejected: Counter[tuple[int, int]] = Counter()
        """How many queries the gate turned away, by round and slot."""

    def write(
        self,
        iteration: int,
        groups: Sequence[Group],
        rejected: Sequence[Rejected],
        outcome: StepOutcome,
    ) -> None:
        """Keep an iteration's groups."""
        del outcome
        if iteration != len(self.iterations):
            raise RuntimeError(f"iteration {iteration} comes after {len(self.iterations)} others")
        self.iterations.append(list(groups))
        tickets = (Ticket.parse(one.query.group_id) for one in rejected)
        self.rejected.update((ticket.round, ticket.slot) for ticket in tickets)


def credit_of(groups: Sequence[Group], config: RunConfig) -> Credit:
    """Both roles' rewards and advantages, by the learner's own functions."""
    rewards = assembly.raw_rewards(groups, config)
    return assign_credit(assembly.outcomes(groups, rewards, config), divide_by_std=False)
