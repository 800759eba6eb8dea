"""How large a fleet should be: a pure policy, which time and observations are handed to.

What makes it settle: the measure is a running mean, begun anew after each change, when all actors
of the new size serve; a fleet grows to the least size that was wanted throughout one while, and
shrinks to the largest that was throughout a longer one; a load a little above the target wants
nothing; and sizes are rounded up, so that the load that made a fleet grow does not shrink it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from configs.fleets import AutoscaleConfig

MOST_CHANGE = 2
"""A fleet at most doubles or halves in one decision: far from the target a load says little."""
FEWEST_SEEN = 3
"""Observations of a size before the next change."""
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Measure:
    """What a target is set for. `load(measured, target)` is the size that would meet the target, as
    a share of the size it was measured with; `words` say what was measured."""

    load: Callable[[float, float], float]
    words: str


def _in_turn(share: float, target: float) -> float:
    """Generation and learning by turns: n actors let the learner wait g/n seconds per step of s, a
    share w with w / (1 − w) = g / (n s)."""
    return _odds(share) / _odds(target)


def _overlapped(share: float, target: float) -> float:
    """Generation and learning side by side: one step per g/n seconds, of which the learner waits
    for the share w = 1 − n s / g, or none where n is enough."""
    return (1 - target) / (1 - min(share, 0.99))


def _odds(share: float) -> float:
    return share / (1 - min(share, 0.99))


WAITS = "the learner waits {:.0%} of its time"
WAITING_IN_TURN = Measure(_in_turn, WAITS)
"""The learner's waiting share at staleness 0."""
WAITING_OVERLAPPED = Measure(_overlapped, WAITS)
"""The learner's waiting share where generation runs ahead."""
QUEUE = Measure(lambda calls, target: calls / target, "{:.1f} calls per actor")
"""Calls in hand and waiting, per serving actor."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A fleet at `time` seconds: actors asked for, those of them that serve and those without a
    place, and what was measured since the last observation."""

    time: float
    size: int
    serving: int
    unplaced: int
    measured: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The size a fleet should have, and why, for the log."""

    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy knows of the size at hand; empty after each change."""

    seen: int = 0
    """Observations of it."""
    mean: float = 0.0
    """Running mean of what was measured."""
    wanted: tuple[tuple[float, int], ...] = ()
    """The sizes that were wanted lately, each with its time."""


def decide(
    config: AutoscaleConfig, measure: Measure, now: Observation, memory: Memory
) -> tuple[Decision | None, Memory]:
    """The size to change to, None to stay; and what to remember for the next time.

    A fleet that has actors without a place is not asked to grow.
    """
    if not config.min <= now.size <= config.max:
        bounds = f"{now.size} actors are outside {config.min} to {config.max}"
        return Decision(min(max(now.size, config.min), config.max), bounds), Memory()
    if now.serving == 0 or now.serving + now.unplaced < now.size:
        return None, Memory()  # some join or restart: what is measured is not of this size
    mean = _mean(config, now, memory)
    wanted = (*memory.wanted, (now.time, _wanted(config, measure, now, mean)))
    size = _settled(config, now, wanted)
    if size == now.size:
        recent = now.time - max(config.grow_after_s, config.shrink_after_s)
        # One that is older tells that the while is over.
        kept = max((i for i, (time, _) in enumerate(wanted) if time <= recent), default=0)
        return None, Memory(memory.seen + 1, mean, wanted[kept:])
    return Decision(size, f"{measure.words.format(mean)}, target {config.target:g}"), Memory()


def _mean(config: AutoscaleConfig, now: Observation, memory: Memory) -> float:
    """The mean with one more observation, which counts by the time since the one before; the first
    ones count alike, or the very first would rule for long."""
    seconds = now.time - memory.wanted[-1][0] if memory.wanted else 0.0
    weight = max(1 - math.exp(-seconds / config.smoothing_s), 1 / (memory.seen + 1))
    return memory.mean + weight * (now.measured - memory.mean)


def _wanted(config: AutoscaleConfig, measure: Measure, now: Observation, mean: float) -> int:
    """The least size within bounds and reach that meets the target."""
    load = measure.load(mean, config.target)
    if now.serving == now.size and 1 <= load <= 1 + config.dead_band:
        return now.size
    least, most = math.ceil(now.serving / MOST_CHANGE), now.serving * MOST_CHANGE
    needed = math.ceil(now.serving * load - ROUNDING)
    return min(max(needed, least, config.min), most, config.max)


def _settled(config: AutoscaleConfig, now: Observation, wanted: Sequence[tuple[float, int]]) -> int:
    """The size that was wanted for long enough."""
    least = min(_since(now.time - config.grow_after_s, wanted), default=now.size)
    most = max(_since(now.time - config.shrink_after_s, wanted), default=now.size)
    if least > now.size and now.unplaced == 0:
        return least
    return min(most, now.size)


def _since(time: float, wanted: Sequence[tuple[float, int]]) -> list[int]:
    """The sizes wanted from `time` on; none where nothing is known of that time."""
    if len(wanted) < FEWEST_SEEN or wanted[0][0] > time:
        return []
    return [size for when, size in wanted if when >= time]
