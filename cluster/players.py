"""The game's players and scorers, each a thin hand into a fleet of actors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from ray.actor import ActorHandle

from actors.records import Completion, GenerationRequest, Query, Sampling, Scores, TokenIds
from actors.roles import parse_query
from cluster.fleet import Fleet
from cluster.seeds import Seeds, Ticket
from configs.base import SamplingConfig
from configs.schema import TaskConfig


class Published(Protocol):
    """What a publish came to (`learner.publisher.PublishReport`)."""

    @property
    def parity(self) -> Mapping[str, float]:
        """Mean |Δ log-probability| of the probe by member, in nats."""
        ...

    @property
    def lost(self) -> Mapping[str, str]:
        """Members that could not be reached and may hold old weights, with the cause."""
        ...


class WeightPublisher(Protocol):
    """The sending end of the weights (`learner.publisher`)."""

    def publish(self, version: int, members: Mapping[str, ActorHandle]) -> Awaitable[Published]:
        """Give every member the learner's weights as `version`, and verify that it holds them."""
        ...


class Policy:
    """The rollout fleet: samples with the policy's weights, and receives new ones.

    `colocated` engines share their GPUs with the learner and sleep while it learns.
    """

    def __init__(self, fleet: Fleet, publisher: WeightPublisher, *, colocated: bool) -> None:
        self.fleet = fleet
        self.publisher = publisher
        self.colocated = colocated
        self._asleep = False

    async def generate(self, requests: list[GenerationRequest]) -> list[Completion]:
        """Sample every request in one remote call."""
        return await self.fleet.call("generate", requests)

    @contextlib.asynccontextmanager
    async def weights_move(self) -> AsyncIterator[None]:
        """The training step and the publish that follows it: no member joins in between.

        A newcomer that caught up after the step and before the publish would hold new weights
        under the old version's name.
        """
        async with self.fleet.weights:
            await self._sleep(self.colocated)
            yield
            await self._sleep(False)

    async def publish(self, version: int) -> float:
        """Give every serving member the new weights; return the largest probe difference.

        It is in nats per token, NaN where no member was reached. A member that died or could not
        be reached is restarted: it must not go on with old weights.
        """
        await self._sleep(False)
        members = self.fleet.serving()
        report = await self.publisher.publish(version, members)
        self.fleet.note_version(version, members.keys() - report.lost.keys())
        causes = set[str]()
        for name, cause in report.lost.items():
            told = f"publish of version {version}: {cause}"
            # A transfer that breaks takes every engine of the fleet with it.
            self.fleet.replace(name, told, counts=cause not in causes)
            causes.add(cause)
        return max(report.parity.values(), default=math.nan)

    async def _sleep(self, asleep: bool) -> None:
        if asleep != self._asleep:
            await self.fleet.call_each("sleep" if asleep else "wake")
            self._asleep = asleep


@dataclass(frozen=True)
class Challenger:
    """The policy in the role that writes queries; `encode(task, template)` makes its prompt.

    A remote call asks for at most `per_call` queries; `seeded` as in `rollout.seeded`.
    """

    policy: Policy
    encode: Callable[[str, str], TokenIds]
    sampling: Sampling
    per_call: int
    seeds: Seeds
    seeded: bool

    def calls(self, tickets: Sequence[Ticket]) -> list[Sequence[Ticket]]:
        """The tickets in parts, at least one for each serving member."""
        members = max(1, len(self.policy.fleet.serving()))
        size = min(self.per_call, math.ceil(len(tickets) / members))
        return [tickets[i : i + size] for i in range(0, len(tickets), size)]

    async def challenge(
        self, tickets: Sequence[Ticket], tasks: Sequence[TaskConfig]
    ) -> list[Query]:
        """Sample one query for each ticket."""
        requests = [
            GenerationRequest(
                self.encode(task.task, task.template),
                self.sampling,
                self.seeds.query(ticket) if self.seeded else None,
            )
            for ticket, task in zip(tickets, tasks, strict=True)
        ]
        sampled = await self.policy.generate(requests)
        return [
            Query(ticket.group_id, parse_query(made.text), task.task, task.template, made)
            for ticket, task, made in zip(tickets, tasks, sampled, strict=True)
        ]


@dataclass(frozen=True)
class Solver:
    """The policy in the role that answers; `encode(query_text)` makes its prompt."""

    policy: Policy
    encode: Callable[[str], TokenIds]
    sampling: Sampling
    answers: int
    seeds: Seeds
    seeded: bool

    async def answer(self, ticket: Ticket, query: Query) -> tuple[Completion, ...]:
        """Sample the G answers to a query in one remote call."""
        prompt = self.encode(query.text)
        seeds = self.seeds.answers(ticket, self.answers) if self.seeded else [None] * self.answers
        requests = [GenerationRequest(prompt, self.sampling, seed) for seed in seeds]
        return tuple(await self.policy.generate(requests))


@dataclass(frozen=True)
class PartScorer:
    """One named part of R: a preference model or a verifier."""

    name: str
    fleet: Fleet

    async def score(self, ticket: Ticket, query: Query, answers: Sequence[Completion]) -> Scores:
        """The part's values [G], raw."""
        texts = [answer.text for answer in answers]
        # The round is for the actor's log alone.
        values_G = await self.fleet.call("score", query.text, texts, query.reference, ticket.round)
        return Scores({self.name: np.asarray(values_G, dtype=np.float64)})


@dataclass(frozen=True)
class QualityScorer:
    """R_Q: the frozen reference as judge."""

    fleet: Fleet
    seeds: Seeds

    async def score(self, ticket: Ticket, query: Query, answers: Sequence[Completion]) -> Scores:
        """The verdicts [G]."""
        texts = [answer.text for answer in answers]
        seeds = self.seeds.verdicts(ticket, len(answers))
        verdicts = await self.fleet.call("score", query.text, texts, seeds, ticket.round)
        return Scores({}, tuple(verdicts))


def sampling_of(config: SamplingConfig, *, logprobs: bool) -> Sampling:
    """A role's sampling, as the engines take it."""
    return Sampling(
        config.temperature, config.top_p, config.max_tokens, tuple(config.stop), logprobs
    )
