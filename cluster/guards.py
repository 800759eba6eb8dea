"""Guards: which declared limits an iteration's figures are beyond, and for how long.

Pure: fed one line of metrics.jsonl after another, so that a resumed run that reads its history
again stands where it stood.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.gate import REASONS
from cluster.round import BAD_LOSS, NONE_ADMITTED
from configs.errors import UserError
from configs.guards import GuardConfig
from rewards.reward import NAN_REWARD, NO_VERDICT

COUNTS = {
    "rejected": REASONS,
    "dropped": "|".join((NAN_REWARD, NO_VERDICT, NONE_ADMITTED, BAD_LOSS)),
}
"""Sections that count what happened in the iteration, with the names that they can have: what is
not there happened no time."""


@dataclass(frozen=True)
class Alarm:
    """A limit that was passed for as many iterations as its guard allows."""

    guard: GuardConfig
    value: float
    began: int
    """The first iteration of the row."""

    def __str__(self) -> str:
        """One sentence."""
        guard = self.guard
        limit = f"above {guard.above:g}" if guard.above is not None else f"below {guard.below:g}"
        return f"{guard.metric} is {self.value:.4g}, {limit} ever since iteration {self.began}"


class Guards:
    """The guards of a run, with the rows of bad iterations they are counting."""

    def __init__(self, guards: Sequence[GuardConfig], history: Iterable[Mapping[str, Any]]) -> None:
        """`history` are the lines of the iterations before the first that is checked."""
        self._guards = guards
        self._rows = [0] * len(guards)
        self._began = [0] * len(guards)
        for row in history:
            self.check(row)

    def check(self, row: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that this iteration sets off, the gravest first.

        Raises UserError where a guard names a figure that no iteration has.
        """
        alarms = [
            alarm
            for place, guard in enumerate(self._guards)
            if (alarm := self._checked(place, guard, row)) is not None
        ]
        gravity = {"rollback": 0, "stop": 1, "log": 2}
        return sorted(alarms, key=lambda alarm: gravity[alarm.guard.action])

    def _checked(self, place: int, guard: GuardConfig, row: Mapping[str, Any]) -> Alarm | None:
        value = figure(row, guard.metric, f"guards.{place}.metric")
        if value is None:
            return None
        bad = self._rows[place] = self._rows[place] + 1 if _beyond(value, guard) else 0
        if bad == 1:
            self._began[place] = row["iteration"]
        if bad == 0 or bad % guard.patience:
            return None
        return Alarm(guard, value, self._began[place])

    def rollback_began(self, iteration: int) -> list[int]:
        """The first bad iterations that a rollback may name, where `iteration` is the next to be
        played: that, which stands for any later one too, and those of the rows that are open.
        Empty where no guard rolls back."""
        places = [i for i, guard in enumerate(self._guards) if guard.action == "rollback"]
        open_rows = {self._began[place] for place in places if self._rows[place]}
        return sorted({iteration} | open_rows) if places else []


def last_good(began: int, staleness: int) -> int:
    """The newest checkpoint whose model played no iteration from `began` on.

    The model of checkpoint t plays iterations t to t + staleness, so the model of the checkpoint
    that a bad row began with is bad itself.
    """
    return max(began - 1 - staleness, 0)


def figure(row: Mapping[str, Any], metric: str, key: str) -> float | None:
    """The figure `metric` (`name` or `section.name`) of a line of metrics.jsonl, None where it has
    none this time; a count that is not there is 0.

    Raises UserError, naming the `key` of the configuration, where no line has such a figure.
    """
    name, _, inner = metric.partition(".")
    if name not in row:
        raise UserError(f"{key}: no iteration has a figure {metric!r}; it has {', '.join(row)}")
    value = row[name]
    if not inner and isinstance(value, int | float | None):
        return value
    if inner and isinstance(value, dict):
        if inner in value:
            return value[inner]
        if name in COUNTS:
            if re.fullmatch(COUNTS[name], inner):
                return 0.0
            raise UserError(f"{key}: {name} counts {COUNTS[name].replace('|', ', ')}, no {inner!r}")
        if not value:  # as `development` is where it was not measured
            return None
    found = ", ".join(f"{name}.{one}" for one in value) if isinstance(value, dict) else name
    raise UserError(f"{key}: no iteration has a figure {metric!r}; there is {found or 'none yet'}")


def _beyond(value: float, guard: GuardConfig) -> bool:
    if guard.above is not None:
        return value > guard.above
    assert guard.below is not None, "checked by GuardConfig"
    return value < guard.below
