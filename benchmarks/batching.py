"""Continuous batching without a model: which sequence is done when, and which version wrote it.

All sequences in the batch get one token per step, and a step takes the longer the more they are.
So they all move at one rate, which changes only when one joins or leaves: time jumps from one such
moment to the next, whatever the number of tokens.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

DONE = ("idle_s", "updating_s", "decoding_s", "sequence_s", "tokens")
"""What an engine adds to its usage: seconds in each state, of each sequence, and tokens."""
ROUNDING = 1e-6
"""Tokens by which a sequence may miss its end: the clock is in floating point."""


@dataclass(frozen=True)
class Decoder:
    """Seconds of a step with `n` sequences: `step_s + n · sequence_s`; at most `sequences`."""

    step_s: float
    sequence_s: float
    sequences: int


class Span(NamedTuple):
    """The policy versions of a sequence's first and last token."""

    first: int
    last: int


@dataclass(slots=True, eq=False)
class _Call:
    """What one caller awaits."""

    future: asyncio.Future[Any]
    finish: Callable[[Sequence[Span]], Any]
    spans: list[Span]
    missing: int
    tokens: int = 0
    """Of its sequences that are done."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """A sequence in the batch, begun when `decoded` was `begun`, by the version `first`."""

    call: _Call
    index: int
    length: int
    begun: float
    first: int


class Engine:
    """One engine; what it does is added to `usage`, which has a number for each of `DONE`.

    `decoded` counts the tokens of a sequence that were always in the batch: one of n tokens that
    joined at b is done when it reaches b + n.
    """

    def __init__(self, decoder: Decoder, usage: dict[str, float]) -> None:
        self.decoder = decoder
        self.usage = usage
        self.version = 0
        self._loop = asyncio.get_running_loop()
        self._running: list[tuple[float, int, _Sequence]] = []
        self._waiting: deque[tuple[_Call, int, int]] = deque()
        self._calls: dict[_Call, None] = {}
        self._order = itertools.count()
        self._decoded = 0.0
        self._settled_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._at_work = self._held = False

    def start(self) -> None:
        """It serves from now on; before, it is down."""
        self._settled_at = self._loop.time()
        self._at_work = True

    def submit(
        self, lengths: Sequence[int], finish: Callable[[Sequence[Span]], Any]
    ) -> asyncio.Future[Any]:
        """Decode sequences of these lengths; the outcome is what `finish` makes of their spans."""
        self.settle()
        spans = [Span(0, 0)] * len(lengths)
        call = _Call(self._loop.create_future(), finish, spans, len(lengths))
        self._calls[call] = None
        self._waiting.extend((call, index, length) for index, length in enumerate(lengths))
        self._go_on()
        return call.future

    def hold(self) -> None:
        """Decode nothing until `release`."""
        self.settle()
        self._held = True

    def release(self, version: int) -> None:
        """Go on with the weights of a version."""
        self.settle()
        self.version = version
        self._held = False
        self._go_on()

    def freeze(self) -> None:
        """Do nothing from now on: the process hangs."""
        self.settle()
        self._at_work = False

    def halt(self) -> tuple[int, float]:
        """End; return the calls that get no answer, and the tokens that were decoded for them."""
        self.freeze()
        lost = sum(self._decoded - sequence.begun for _, _, sequence in self._running)
        lost += sum(call.tokens for call in self._calls)
        return len(self._calls), lost

    def settle(self) -> None:
        """Count what was done since the last time."""
        now = self._loop.time()
        elapsed, self._settled_at = now - self._settled_at, now
        if not self._at_work:
            return
        batch = len(self._running)
        if self._held:
            self.usage["updating_s"] += elapsed
        elif not batch:
            self.usage["idle_s"] += elapsed
        else:
            steps = elapsed / self._step_s()
            self._decoded += steps
            self.usage["decoding_s"] += elapsed
            self.usage["sequence_s"] += batch * elapsed
            self.usage["tokens"] += batch * steps

    def _go_on(self) -> None:
        """End what is done, fill the batch, and set the timer for the next end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held or not self._at_work:
            return
        while self._running and self._running[0][0] <= self._decoded + ROUNDING:
            self._end(heapq.heappop(self._running)[-1])
        while self._waiting and len(self._running) < self.decoder.sequences:
            self._join(*self._waiting.popleft())
        if self._running:
            left = self._running[0][0] - self._decoded
            self._timer = self._loop.call_later(left * self._step_s(), self._on_time)

    def _on_time(self) -> None:
        self.settle()
        self._go_on()

    def _step_s(self) -> float:
        return self.decoder.step_s + len(self._running) * self.decoder.sequence_s

    def _join(self, call: _Call, index: int, length: int) -> None:
        sequence = _Sequence(call, index, length, self._decoded, self.version)
        heapq.heappush(self._running, (self._decoded + length, next(self._order), sequence))

    def _end(self, sequence: _Sequence) -> None:
        call = sequence.call
        call.spans[sequence.index] = Span(sequence.first, self.version)
        call.tokens += sequence.length
        call.missing -= 1
        if call.missing == 0:
            del self._calls[call]
            if not call.future.done():
                call.future.set_result(call.finish(call.spans))
