"""Newcomers of a fleet at its door: all that wait there catch up in one transfer, and serve.

Over NCCL every transfer to other members than the last makes a new group of engines: newcomers that
caught up one by one would keep the learner's next step waiting for one group each.

Invariants: a newcomer serves under the same hold of `weights` in which it has caught up, so that no
publish comes between; one that is told to leave meanwhile never serves; one whose catch-up has
failed catches up alone, so that it takes no others with it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from ray.actor import ActorHandle

from cluster.calls import LostError, LostWithAnotherError, within
from cluster.heartbeat import listen
from cluster.member import State
from cluster.seat import Seat
from configs.fleets import FleetConfig

log = logging.getLogger(__name__)

CatchUp = Callable[[Mapping[str, ActorHandle]], Coroutine[Any, Any, Mapping[str, str]]]
"""Gives newcomers the current weights; returns, when the others hold them, the causes of those that
are lost, by name."""
CATCHING_UP = (State.STALE, State.DRAINING)


class Admissions:
    """The newcomers of a fleet whose processes have started.

    Weights rest while `weights` is held; `catch_up` is None where a fleet has none;
    `serve(seat)` makes a newcomer a serving member; `kill` as in `Fleet`.
    """

    def __init__(
        self,
        config: FleetConfig,
        weights: asyncio.Lock,
        catch_up: CatchUp | None,
        kill: Callable[[ActorHandle], None],
        serve: Callable[[Seat], None],
    ) -> None:
        self._config = config
        self._weights = weights
        self._catch_up = catch_up
        self._kill = kill
        self._serve = serve
        self._waiting: list[Seat] = []
        self._apart: set[Seat] = set()
        """Those whose last catch-up has failed."""
        self._lost: dict[Seat, LostError] = {}

    async def admit(self, seat: Seat) -> None:
        """Let a STALE newcomer catch up and serve, where it is not told to leave.

        Raises LostError, or LostWithAnotherError for all but one of those that a transfer has lost.
        """
        self._waiting.append(seat)
        async with self._weights:
            if seat in self._waiting:
                await self._bring_up(self._next(seat))
        lost = self._lost.pop(seat, None)
        if lost is not None:
            raise lost

    def _next(self, first: Seat) -> list[Seat]:
        """Those that catch up now: all that wait, or one that does it alone."""
        together = [seat for seat in self._waiting if seat not in self._apart]
        together = [first] if first in self._apart else together
        self._waiting = [seat for seat in self._waiting if seat not in together]
        return [seat for seat in together if seat.stays]

    async def _bring_up(self, seats: Sequence[Seat]) -> None:
        causes = await self._caught_up(seats)
        kind: type[LostError] = LostError
        for seat in seats:
            cause = causes.get(seat.member.name)
            if cause is not None:
                self._lost[seat], kind = kind(cause), LostWithAnotherError
                self._apart.add(seat)
            elif seat.stays:
                self._apart.discard(seat)
                self._serve(seat)

    async def _caught_up(self, seats: Sequence[Seat]) -> Mapping[str, str]:
        """Bring them to the current weights; return what became of those that are lost."""
        if self._catch_up is None or not seats:
            return {}
        members = {seat.member.name: seat.handle for seat in seats if seat.handle is not None}
        log.debug("catching up: %s", list(members))
        # All others wait for their next weights meanwhile: a hung newcomer may not last.
        watches = [asyncio.ensure_future(self._watched(seat)) for seat in seats]
        try:
            return await within(self._config.deadline_s, self._catch_up(members))
        except LostError as lost:
            return dict.fromkeys(members, str(lost))
        finally:
            for watch in watches:
                watch.cancel()

    async def _watched(self, seat: Seat) -> None:
        await listen(seat, self._config.silence_s, partial(self._end, seat), CATCHING_UP)

    def _end(self, seat: Seat, cause: str) -> None:
        """End the process of one that is hung, and with it whatever waits for it."""
        log.warning("%s is ended while it catches up: %s", seat.member.name, cause)
        if seat.handle is not None:
            self._kill(seat.handle)
