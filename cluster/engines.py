"""Engines of evaluations: one fleet at a time, started when it is first asked, ended for certain.

One at a time, so that two models and a reward model fit one GPU by turns; and only when asked, so
that an evaluation whose answers are there already starts nothing.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import ray
from ray.actor import ActorHandle

from actors.placing import thread_environment
from actors.records import Completion, GenerationRequest
from actors.rollout import RolloutActor
from cluster.evaluated import Evaluated
from cluster.fleet import Fleet
from cluster.run import STOP_SIGNALS, connect
from configs.fleets import EngineConfig
from configs.rewards import PreferencePart
from evaluation.config import EvaluationConfig
from rewards.preference import PreferenceActor

HOST = "127.0.0.1"
"""Where the actors' metrics are served."""
MOST_CALLS = 1000
"""Calls that one actor takes at a time; the engines batch them."""

T = TypeVar("T")


class Engines:
    """At most one fleet; asking for another one ends it."""

    def __init__(self) -> None:
        self._fleet: Fleet | None = None
        self._whose = ""
        self._fault: BaseException | None = None
        self._turn = asyncio.Lock()

    async def call(self, whose: str, made: Callable[[], Fleet], method: str, *args: Any) -> Any:
        """`method(*args)` on the fleet of a model, which `made` makes where it does not run yet.

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
        """End the fleet; no process of it is left."""
        if self._fleet is not None:
            await self._fleet.stop()
            self._fleet = None

    async def _change(self, whose: str, made: Callable[[], Fleet]) -> None:
        await self.stop()
        self._whose = whose
        if not ray.is_initialized():
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
        return await self.engines.call(self.model.name, self._fleet, "generate", requests)

    def _fleet(self) -> Fleet:
        config: EvaluationConfig = self.model.config

        def spawn(name: str) -> ActorHandle:
            return _actor(RolloutActor, config.rollout).remote(
                self.model.path,
                config.rollout,
                name=name,
                metrics_host=HOST,
                transfer_backend=None,
                revision=self.model.revision,
                trust_remote_code=config.trust_remote_code,
            )

        return Fleet("rollout", config.rollout, spawn)


@dataclass(frozen=True)
class Scoring:
    """A `Scorer` of `evaluation.alpaca.reward_judge`: a reward model's engines, when asked."""

    engines: Engines
    part: PreferencePart
    config: EvaluationConfig

    async def score(self, query: str, answers: list[str]) -> npt.NDArray[np.float64]:
        """Return the scores [len(answers)]; NaN for an answer that does not fit the context."""
        return await self.engines.call(self.part.name, self._fleet, "score", query, answers, None)

    def _fleet(self) -> Fleet:
        def spawn(name: str) -> ActorHandle:
            return _actor(PreferenceActor, self.part.fleet).remote(
                self.part, name=name, metrics_host=HOST, chat_date=self.config.chat_date
            )

        return Fleet("reward_fleet", self.part.fleet, spawn)


def with_engines(work: Callable[[Engines], Awaitable[T]]) -> T:
    """Do the work with engines, and end them whatever happens.

    Raises:
        KeyboardInterrupt: Ctrl-C, or another signal that asks for an end.
    """
    try:
        return asyncio.run(_ended(work))
    finally:
        ray.shutdown()


async def _ended(work: Callable[[Engines], Awaitable[T]]) -> T:
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None
    engines = Engines()
    # A signal that is ignored is so on purpose, as nohup does.
    caught = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in caught}
    for number in caught:
        loop.add_signal_handler(number, main.cancel)
    try:
        return await work(engines)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        # Half a clean-up leaves processes: whoever asks for an end now has it already.
        for number in caught:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        await engines.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _actor(kind: type, config: EngineConfig) -> Any:
    """An actor class with what its fleet reserves; Ray itself restarts nothing."""
    return ray.remote(kind).options(
        num_cpus=config.cpus,
        num_gpus=config.gpus * config.tensor_parallel,
        max_concurrency=MOST_CALLS,
        runtime_env={"env_vars": thread_environment(config.threads)},
    )
