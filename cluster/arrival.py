"""From the request for an actor to its first answer: the wait for a place, and the start there.

The start has a deadline. The wait for a place has one only where nothing else can go on: when
none of the fleet serves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray.actor import ActorHandle

from cluster.calls import LateError, LostError, ask
from cluster.faults import RunError
from configs.errors import UserError
from configs.fleets import FleetConfig

log = logging.getLogger(__name__)

LOOK_DEADLINE_S = 10.0

Lacking = Callable[[ActorHandle, FleetConfig], str | None]


class UnplacedError(LateError):
    """An actor has found no place in time."""


class Arrivals:
    """The newcomers of a fleet; `lacking(actor, config)` says why an actor has no place, None where
    it has one, and `tell()` is called when one more has none."""

    def __init__(self, config: FleetConfig, lacking: Lacking, tell: Callable[[], None]) -> None:
        self.unplaced: dict[str, str] = {}
        """What those lack that have waited too long for a place, as a sentence by name."""
        self._config = config
        self._lacking = lacking
        self._tell = tell

    async def arrival(
        self, name: str, actor: ActorHandle, may_wait: Callable[[], bool]
    ) -> dict[str, Any]:
        """What a newcomer says of itself, once it has started.

        It waits for a place while `may_wait()`. Raises UnplacedError, or LateError or LostError
        where it has a place and does not start there.
        """
        now = asyncio.get_running_loop().time
        answer = asyncio.ensure_future(ask(actor, asyncio.timeout(None), "describe"))
        limit = now() + self._config.start_deadline_s
        try:
            while not answer.done():
                look = min(self._config.placement_deadline_s, limit - now())
                await asyncio.wait({answer}, timeout=look)
                if not answer.done():
                    extended = await self._look(name, actor) and may_wait()
                    limit = now() + self._config.start_deadline_s if extended else limit
                    self._check(name, now() >= limit)
            return answer.result()
        finally:
            answer.cancel()
            self.unplaced.pop(name, None)

    async def _look(self, name: str, actor: ActorHandle) -> bool:
        """Whether it has waited for a place until now, or does so still; what it lacks is noted."""
        waited = name in self.unplaced
        lacks = await self._lacks(name, actor)
        if lacks is None:
            self.unplaced.pop(name, None)
            return waited
        self.unplaced[name] = f"{name} has no place: {lacks}"
        if not waited:
            log.warning("%s", self.unplaced[name])
            self._tell()
        return True

    async def _lacks(self, name: str, actor: ActorHandle) -> str | None:
        try:
            async with asyncio.timeout(LOOK_DEADLINE_S):
                return await asyncio.to_thread(self._lacking, actor, self._config)
        except Exception as error:  # noqa: BLE001 (its start has a deadline all the same)
            log.warning("%s: cannot tell whether it has a place: %s", name, error)
            return None

    def _check(self, name: str, over: bool) -> None:
        if over and name in self.unplaced:
            raise UnplacedError(self.unplaced[name])
        if over:
            raise LateError("no answer within its deadline")


def start_error(name: str, config: FleetConfig, lost: LostError) -> UserError | RunError:
    """The error of a fleet that does not start, as the user should read it."""
    if isinstance(lost, LateError):
        why = f": {lost}; give it that" if isinstance(lost, UnplacedError) else "; see its log"
        return UserError(
            f"fleet {name}: an actor did not start within {config.start_deadline_s:g} s{why}, free"
            f" the resources it waits for, or raise {name}.start_deadline_s"
        )
    # Ray hands over a constructor's exception only as text: the last line has its type and message.
    last_line = str(lost.__cause__ or lost).strip().rpartition("\n")[2]
    kind, _, message = last_line.partition(": ")
    if kind.endswith("UserError"):
        return UserError(message)
    return RunError(f"fleet {name}: an actor could not start: {last_line}")
