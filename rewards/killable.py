"""A verifier in a process that can be killed: a hung or crashed one costs one answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors import killable
from actors.killable import AwaitableFunction, KillableFunction, shown

log = logging.getLogger(__name__)

Call = tuple[str, str, str | None]
"""(query, answer, reference)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one answer: `kind` is scored, hung, crashed, raised or no_number."""

    kind: str
    score: float | None = None


class KillableVerifier:
    """The verifier `function` in a persistent process. Not thread-safe.

    Linux kills the process when the *thread* that started it ends: call from one lasting thread.
    """

    def __init__(self, function: str, answer_deadline_s: float, key: str) -> None:
        """Start the process.

        Args:
            function: `module:function`.
            answer_deadline_s: Seconds for one answer.
            key: Where the run's configuration names the function, for messages.

        Raises:
            UserError: There is no such module or function, or its import fails or hangs.
        """
        self._key = key
        self._function = KillableFunction(function, answer_deadline_s, key)
        self._function.start()

    def verify(self, calls: Sequence[Call]) -> list[Outcome]:
        """Return the outcome of each call, in order."""
        outcomes = self._function.call(calls)
        return [_scored(self._key, *one) for one in zip(calls, outcomes, strict=True)]

    def close(self) -> None:
        """Kill the process."""
        self._function.close()


async def score_apart(
    function: str, answer_deadline_s: float, key: str, calls: Sequence[Call]
) -> list[float | None]:
    """Return the score of each call, in order, from a process that is gone afterwards.

    None where the verifier hung, crashed, raised or returned no number. Cancelled, it ends after
    the answer in hand. Arguments and errors are those of `KillableVerifier`.
    """
    verifier = AwaitableFunction(function, answer_deadline_s, key)
    try:
        await verifier.start()
        return [_scored(key, call, await verifier.call(*call)).score for call in calls]
    finally:
        await verifier.close()


def _scored(key: str, call: Call, outcome: killable.Outcome) -> Outcome:
    """The outcome of a verifier's call: what it returned has to be a finite number."""
    if outcome.kind == "returned":
        score = _number(outcome.result)
        if score is not None:
            return Outcome("scored", score)
        log.warning("%s: it returned %.200r; given %s", key, outcome.result, shown(call))
    return Outcome("no_number" if outcome.kind in ("returned", "no_json") else outcome.kind)


def _number(result: Any) -> float | None:
    try:
        score = math.nan if isinstance(result, str) else float(result)
    except (TypeError, ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None
