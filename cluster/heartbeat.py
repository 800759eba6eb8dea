"""Whether a member lives, asked again and again: long before a call would find out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ray.actor import ActorHandle

from cluster.calls import LateError, LostError, ask
from cluster.member import State
from cluster.seat import AT_WORK, Seat

log = logging.getLogger(__name__)

QUESTIONS = 3
"""How often in the time that it may be silent a member is asked whether it answers at all."""


async def listen(
    seat: Seat,
    silence_s: float,
    lose: Callable[[str], None],
    states: Sequence[State] = AT_WORK,
) -> None:
    """Ask the seat's present process while it is in one of `states`; `lose` it, with the cause,
    where it is dead, or silent for `silence_s`."""
    member = seat.member
    while seat.member.incarnation == member.incarnation and seat.member.state in states:
        try:
            await _asked_twice(seat.handle, silence_s)
        except LostError as lost:
            lose(f"heartbeat: {lost}")
        except Exception:
            log.exception("%s: heartbeat", member.name)
        await asyncio.sleep(silence_s / QUESTIONS)


async def _asked_twice(handle: ActorHandle | None, silence_s: float) -> None:
    """Ask whether it answers; again if not, since it may be this loop that stood still."""
    try:
        await ask(handle, silence_s, "describe")
    except LateError:
        await ask(handle, silence_s / QUESTIONS, "describe")
