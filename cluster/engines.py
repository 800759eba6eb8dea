"""Engines of evaluations: one fleet at a time, started when it is first asked, ended for certain.

One at a time, so that two models and a reward model fit one GPU by turns; and only when asked, so
that an evaluation whose answers are there already starts nothing.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import ray
from ray.actor import ActorHandle

from actors.generator import Generator
from actors.member import Post
from actors.records import Completion, GenerationRequest
from actors.rollout import RolloutActor
from cluster.connection import connect
from cluster.evaluated import Evaluated
from cluster.fleet import Fleet
from cluster.reserving import actor_class
from cluster.signals import answering
from configs.fleets import RolloutConfig
from configs.rewards import PreferencePart
from evaluation.asking import Fitting, Paced
from evaluation.config import EvaluationConfig
from rewards.preference import PreferenceActor

HOST = "127.0.0.1"
"""Where the actors' metrics are served."""

T = TypeVar("T")


class Engines:
    """At most one fleet; asking for another one ends it. Ray is connected to where it is not."""

    def __init__(self) -> None:
        self._connected = False
        self._fleet: Fleet | None = None
        self._whose: object = None
        self._fault: BaseException | None = None
        self._turn = asyncio.Lock()

    async def call(self, whose: object, made: Callable[[], Fleet], method: str, *args: Any) -> Any:
        """`method(*args)` on the fleet of a model, which `made` makes where it does not run yet.

        `whose` is all that tells the fleet from others.

        Raises:
            UserError: It cannot be started; later calls raise the same and start nothing.
        """
        async with self._turn:
            if self._fault is not None:
                raise self._fault
            if self._fleet is None or self._whose != whose:
                await self._change(whose, made)
            fleet = self._fleet
        assert fleet is not None
        return await fleet.call(method, *args)

    async def stop(self) -> None:
        """End the fleet, and Ray if it was begun for it; no process is left."""
        await self._end_fleet()
        if self._connected:
            ray.shutdown()

    async def _end_fleet(self) -> None:
        if self._fleet is not None:
            await self._fleet.stop()
            self._fleet = None

    async def _change(self, whose: object, made: Callable[[], Fleet]) -> None:
        await self._end_fleet()
        self._whose = whose
        if not ray.is_initialized():
            self._connected = True
            connect()
        self._fleet = made()
        try:
            await self._fleet.start()
        except BaseException as error:
            self._fault = error
            raise


@dataclass(frozen=True)
class Answering:
    """A `Generator`: a model's engines, when they are asked."""

    engines: Engines
    model: Evaluated[Any]

    async def generate(self, requests: list[GenerationRequest]) -> list[Completion]:
        """Return one completion per request, in their order."""
        # By its weights: models of two runs may have the same name.
        whose = (self.model.identity, self.model.config.rollout)
        return await self.engines.call(whose, self._fleet, "generate", requests)

    def _fleet(self) -> Fleet:
        config: EvaluationConfig = self.model.config

        def spawn(name: str) -> ActorHandle:
            return actor_class(RolloutActor, config.rollout).remote(
                self.model.path,
                config.rollout,
                post=Post(name, HOST),
                transfer_backend=None,
                revision=self.model.revision,
                trust_remote_code=config.trust_remote_code,
            )

        return Fleet("rollout", config.rollout, spawn)


def asked(engines: Engines, model: Evaluated[Any]) -> Generator:
    """A model's engines, asked for what fits their context, and no more than they can at once."""
    rollout: RolloutConfig = model.config.rollout
    paced = Paced(Answering(engines, model), rollout.max_sequences, rollout.replicas)
    return Fitting(paced, rollout.context)


@dataclass(frozen=True)
class Scoring:
    """A `Scorer` of `evaluation.alpaca.reward_judge`: a reward model's engines, when asked."""

    engines: Engines
    part: PreferencePart
    config: EvaluationConfig

    async def score(self, query: str, answers: list[str]) -> npt.NDArray[np.float64]:
        """Return the scores [len(answers)]; NaN for an answer that does not fit the context."""
        async with self._pairs:
            return await self.engines.call(self.part, self._fleet, "score", query, answers, None)

    @cached_property
    def _pairs(self) -> asyncio.Semaphore:
        """As `Paced` does it: no more pairs of answers than the engines read at once."""
        fleet = self.part.fleet
        return asyncio.Semaphore(max(1, fleet.max_sequences // 2) * fleet.replicas)

    def _fleet(self) -> Fleet:
        def spawn(name: str) -> ActorHandle:
            return actor_class(PreferenceActor, self.part.fleet).remote(
                self.part, post=Post(name, HOST), chat_date=self.config.chat_date
            )

        return Fleet("reward_fleet", self.part.fleet, spawn)


def with_engines(work: Callable[[Engines], Awaitable[T]]) -> T:
    """Do the work with engines, and end them whatever happens.

    Raises:
        KeyboardInterrupt: Ctrl-C, or another signal that asks for an end.
    """
    return asyncio.run(_ended(work))


async def _ended(work: Callable[[Engines], Awaitable[T]]) -> T:
    main = asyncio.current_task()
    assert main is not None
    engines = Engines()

    def end(_: signal.Signals) -> None:
        main.cancel()

    with answering(end) as ignore:
        try:
            return await work(engines)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            ignore()
            await engines.stop()
