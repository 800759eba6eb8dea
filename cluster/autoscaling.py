"""Fleets that change their own size: observed once an iteration, resized as the policy decides.

A fleet that grows asks Ray for actors, and those that wait for a place are what Ray's cluster
autoscaler sees as demand.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.autoscale import (
    QUEUE,
    WAITING_IN_TURN,
    WAITING_OVERLAPPED,
    Memory,
    Observation,
    decide,
)
from cluster.fleet import Fleet

log = logging.getLogger(__name__)

ROLLOUT = "rollout"


@dataclass
class _Watched:
    """A fleet that changes its own size, and what is known of it since `time`."""

    fleet: Fleet
    time: float
    call_seconds: float = 0.0
    memory: Memory = field(default_factory=Memory)
    asked: int = 0
    """The size it was last told to grow to."""
    rests_until: float = 0.0
    """No growth before: the last one has failed."""

    def note_failed_growth(self, pause_s: float) -> None:
        """Newcomers that cannot start are given up, and would be asked for again at once."""
        if self.fleet.target < self.asked:
            self.rests_until, self.memory = self.time + pause_s, Memory()
        self.asked = 0


class Autoscaler:
    """The policy at work on the fleets whose section `autoscale` is there."""

    def __init__(self, fleets: Mapping[str, Fleet], staleness: int, time: float) -> None:
        """`time` is the present, in seconds of any clock."""
        self._waiting = WAITING_IN_TURN if staleness == 0 else WAITING_OVERLAPPED
        self._watched = {
            name: _Watched(fleet, time, fleet.call_seconds)
            for name, fleet in fleets.items()
            if fleet.config.autoscale is not None
        }

    def observe(self, time: float, waiting_share: float) -> None:
        """Look at every fleet after an iteration, and resize it where it is time.

        `waiting_share` is the share of the iteration that the learner waited for its groups.
        """
        for name, watched in self._watched.items():
            if time > watched.time:
                measured = waiting_share if name == ROLLOUT else self._calls(watched, time)
                self._decide(name, watched, time, measured)

    def _calls(self, watched: _Watched, time: float) -> float:
        """Calls in hand and waiting since the last look, on average, for each serving actor."""
        fleet = watched.fleet
        seconds, watched.call_seconds = watched.call_seconds, fleet.call_seconds
        calls = (fleet.call_seconds - seconds) / (time - watched.time)  # Little's law
        return calls / max(1, len(fleet.serving()))

    def _decide(self, name: str, watched: _Watched, time: float, measured: float) -> None:
        fleet = watched.fleet
        config = fleet.config.autoscale
        assert config is not None, "only such fleets are watched"
        watched.time = time
        if fleet.target != watched.asked:
            watched.note_failed_growth(config.shrink_after_s)
        seen = Observation(time, fleet.target, len(fleet.serving()), len(fleet.unplaced), measured)
        measure = self._waiting if name == ROLLOUT else QUEUE
        decision, watched.memory = decide(config, measure, seen, watched.memory)
        grows = decision is not None and decision.size > fleet.target
        if decision is None or (grows and time < watched.rests_until):
            return
        watched.asked = decision.size if grows else 0
        change = f"{fleet.target} → {decision.size} actors"
        log.info("autoscale: %s: %s, since %s", name, change, decision.reason)
        fleet.resize(decision.size)
