"""Actors that take time and compute nothing: engines, judges and verifiers.

They stand where the Ray actors stand: a `Crew` makes the processes of one fleet and ends them, a
handle's `method.remote(...)` is something to await. What is sampled follows from the seeds that a
call brings, never from timing: a call that is done again has the same outcome.
"""

from __future__ import annotations

import asyncio
import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, cast
from zlib import crc32

import numpy as np
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError

from actors.records import Completion, GenerationRequest, Verdict
from benchmarks.batching import DONE, Decoder, Engine, Span

USAGE = (*DONE, "calls_redone", "tokens_redone", "died", "hung")
"""What a crew sums up, in seconds of all its members, tokens, calls and processes."""
ENGINE = Decoder(0.012, 0.0001, 64)
VERIFIER = Decoder(0.005, 0.0, 1)
"""One answer after the other."""
NORMAL = NormalDist()
SEED_BITS = 63
EXACT_BITS = 52
"""Bits of a seed of which every value and a half is a float."""


@dataclass(frozen=True)
class Lengths:
    """Log-normal numbers of tokens, cut at a limit."""

    median: float
    sigma: float
    limit: int

    def of(self, seed: int) -> int:
        """The length of the sequence with this seed (0..2⁶³−1), which is uniform."""
        share = ((seed >> (SEED_BITS - EXACT_BITS)) + 0.5) / 2**EXACT_BITS
        length = round(self.median * math.exp(self.sigma * NORMAL.inv_cdf(share)))
        return min(max(length, 1), self.limit)


@dataclass(frozen=True)
class Failures:
    """How long a process serves before it fails (exponential), and how often it then hangs."""

    mean_life_s: float = 6 * 3600.0
    hung_share: float = 0.1
    """Share of the failures of an engine that are hangs: alive and silent. A verifier only dies."""


@dataclass(frozen=True)
class Times:
    """What takes how long in the simulated cluster, in seconds and tokens. All of it is invented,
    in the proportions of a model of a few billion parameters that reasons at some length."""

    rollout: Decoder = ENGINE
    judge: Decoder = ENGINE
    verifier: Decoder = VERIFIER
    query: Lengths = Lengths(60, 0.8, 256)
    """A query that is cut is turned away by the gate."""
    answer: Lengths = Lengths(400, 0.8, 4096)
    verdict: Lengths = Lengths(150, 0.3, 320)
    start_s: float = 45.0
    publish_s: float = 2.0
    step_s: float = 3.0
    """Of a training step, besides its tokens."""
    trained_per_member: float = 400.0
    """Tokens that the learner trains per second, for each rollout member: it grows with them."""


TOKENS = np.zeros(Times.answer.limit, dtype=np.int32)


class Crew:
    """The processes of one fleet; `usage` sums up what they did, over all of them."""

    def __init__(
        self,
        kind: type[Process],
        times: Times,
        seed: int,
        failures: Failures | None,
    ) -> None:
        self.kind = kind
        self.times = times
        self.seed = seed
        self.failures = failures
        self.usage: dict[str, float] = dict.fromkeys(USAGE, 0.0)
        self.alive: dict[Process, None] = {}
        self.delivered: Counter[int] = Counter()
        """How often the sequence with a seed was handed over."""
        self._spawned: Counter[str] = Counter()

    def spawn(self, name: str) -> ActorHandle:
        """Start a process."""
        incarnation = self._spawned[name]
        self._spawned[name] += 1
        process = self.kind(self, random.Random(f"{self.seed} {name} {incarnation}"))
        self.alive[process] = None
        return process.handle

    def kill(self, handle: ActorHandle) -> None:
        """End a process, whatever state it is in."""
        process: Process = cast(Any, handle).process
        process.end()

    def used(self) -> dict[str, float]:
        """What all processes did up to now."""
        for process in self.alive:
            process.engine.settle()
        return dict(self.usage)


class Process(ABC):
    """One actor's process: it starts, answers calls, and in the end dies, hangs or is killed.

    Invariant: a call is answered once, or fails when the process ends.
    """

    methods: tuple[str, ...] = ("describe", "stop")
    hangs = True

    def __init__(self, crew: Crew, fate: random.Random) -> None:
        self.crew = crew
        self.times = crew.times
        self.loop = asyncio.get_running_loop()
        self.engine = Engine(self.decoder, crew.usage)
        self.hung = self.dead = False
        self._fate = fate
        self._calls: dict[asyncio.Future[Any], None] = {}
        self._ready = self.loop.create_future()
        self.loop.call_later(self.times.start_s, self._serve)
        remotes = {name: SimpleNamespace(remote=self._remote(name)) for name in self.methods}
        self.handle = cast(ActorHandle, SimpleNamespace(process=self, **remotes))

    @property
    @abstractmethod
    def decoder(self) -> Decoder:
        """How fast it is."""

    def describe(self) -> asyncio.Future[Any]:
        """Answer once it has started."""
        return self._ready

    def stop(self) -> asyncio.Future[Any]:
        """Answer at once."""
        return self._after(0.0, lambda: None)

    def end(self) -> None:
        """No more; the calls in hand fail."""
        if self.dead:
            return
        self.dead = True
        calls, tokens = self.engine.halt()
        self.crew.usage["calls_redone"] += calls
        self.crew.usage["tokens_redone"] += tokens
        self.crew.alive.pop(self, None)
        for call in [*self._calls]:
            if not call.done():
                call.set_exception(ActorDiedError())

    def _serve(self) -> None:
        if self.dead:
            return
        self.engine.start()
        self._ready.set_result({})
        if self.crew.failures is not None:
            life = self._fate.expovariate(1 / self.crew.failures.mean_life_s)
            hangs = self.hangs and self._fate.random() < self.crew.failures.hung_share
            self.loop.call_later(life, self._hang if hangs else self._die)

    def _die(self) -> None:
        if not self.dead:
            self.crew.usage["died"] += 1
            self.end()

    def _hang(self) -> None:
        if not self.dead:
            self.crew.usage["hung"] += 1
            self.hung = True
            self.engine.freeze()

    def _remote(self, method: str) -> Callable[..., asyncio.Future[Any]]:
        work = getattr(self, method)

        def remote(*args: Any) -> asyncio.Future[Any]:
            future = self.loop.create_future() if self.dead or self.hung else work(*args)
            if self.dead:
                future.set_exception(ActorDiedError())
            elif not future.done():
                self._calls[future] = None
                future.add_done_callback(self._calls.pop)
            return future

        return remote

    def _after(self, seconds: float, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """The outcome of `work`, done later unless the process fails before."""
        future = self.loop.create_future()

        def do() -> None:
            if not (self.dead or self.hung or future.done()):
                future.set_result(work())

        self.loop.call_later(seconds, do)
        return future


class RolloutProcess(Process):
    """Plays both roles: `actors.rollout.RolloutActor`."""

    methods = ("describe", "stop", "generate", "update")

    @property
    def decoder(self) -> Decoder:
        """The policy's."""
        return self.times.rollout

    def generate(self, requests: Sequence[GenerationRequest]) -> asyncio.Future[Any]:
        """Sample every request."""
        limits = {lengths.limit: lengths for lengths in (self.times.query, self.times.answer)}
        lengths = [limits[r.sampling.max_tokens].of(cast(int, r.seed)) for r in requests]

        def completions(spans: Sequence[Span]) -> list[Completion]:
            self.crew.delivered.update(cast(int, request.seed) for request in requests)
            return [
                _completion(request, length, span)
                for request, length, span in zip(requests, lengths, spans, strict=True)
            ]

        return self.engine.submit(lengths, completions)

    def update(self, version: int, seconds: float) -> asyncio.Future[Any]:
        """Take new weights: nothing is decoded meanwhile."""
        self.engine.hold()
        return self._after(seconds, lambda: self.engine.release(version))


class JudgeProcess(Process):
    """Writes verdicts: `rewards.quality.QualityActor`."""

    methods = ("describe", "stop", "score")

    @property
    def decoder(self) -> Decoder:
        """The reference model's."""
        return self.times.judge

    def score(
        self, query: str, answers: Sequence[str], seeds: Sequence[int], iteration: int
    ) -> asyncio.Future[Any]:
        """The verdicts on the answers."""
        del query, answers, iteration
        verdicts = tuple(Verdict(seed % 8, "") for seed in seeds)
        return self.engine.submit(
            [self.times.verdict.of(seed) for seed in seeds], lambda _: verdicts
        )


class VerifierProcess(Process):
    """Says right or wrong: `rewards.verifier_actor.VerifierActor`."""

    methods = ("describe", "stop", "score")
    # The configuration's deadline of a verifier grows with all answers in hand; at a thousand
    # groups a hung one would be noticed after hours.
    hangs = False

    @property
    def decoder(self) -> Decoder:
        """One answer after the other."""
        return self.times.verifier

    def score(
        self, query: str, answers: Sequence[str], reference: str | None, iteration: int
    ) -> asyncio.Future[Any]:
        """The scores of the answers."""
        del query, reference, iteration
        scores = np.array([crc32(answer.encode()) & 1 for answer in answers], dtype=np.float64)
        return self.engine.submit([len(answers)], lambda _: scores)


def _completion(request: GenerationRequest, length: int, span: Span) -> Completion:
    cut = length == request.sampling.max_tokens
    return Completion(
        request.prompt_token_ids,
        TOKENS[:length],
        f"text {request.seed}",
        "length" if cut else "stop",
        *span,
        cast(int, request.seed),
    )
