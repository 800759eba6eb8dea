"""Whether a member lives, asked again and again: long before a call would find out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.calls import LostError, ask
from cluster.seat import AT_WORK, Seat

QUESTIONS = 3
"""How often in the time that it may be silent a member is asked whether it answers at all."""


async def listen(seat: Seat, silence_s: float, lose: Callable[[str], None]) -> None:
    """Ask the seat's present process until it is at work no more; `lose` it, with the cause, where
    it is dead, or silent for `silence_s`."""
    incarnation = seat.member.incarnation
    while seat.member.incarnation == incarnation and seat.member.state in AT_WORK:
        try:
            await ask(seat.handle, silence_s, "describe")
        except LostError as lost:
            lose(f"heartbeat: {lost}")
        await asyncio.sleep(silence_s / QUESTIONS)
