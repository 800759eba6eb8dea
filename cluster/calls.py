"""Remote calls with a deadline, and what it means when they fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from actors.member import LOST, EngineDiedError

log = logging.getLogger(__name__)


class LostError(Exception):
    """The actor that was asked is dead, or of no use."""


class LostWithAnotherError(LostError):
    """The actor was lost together with another, whose loss counts."""


class LateError(LostError):
    """The actor that was asked has not answered within the deadline."""


async def ask(
    handle: ActorHandle | None, limit: asyncio.Timeout | float, method: str, *args: Any
) -> Any:
    """One remote call within `limit`, seconds or a timeout that others may move.

    Raises as `within` does.
    """
    log.debug("waiting for %s", method)
    return await within(limit, getattr(handle, method).remote(*args))


async def within(limit: asyncio.Timeout | float, remote: Awaitable[Any]) -> Any:
    """Wait for remote work.

    Raises LostError where its actor is dead, or alive without its engine, and LateError where it is
    silent; else the work's own exception: an application's TimeoutError is a RayTaskError too, and
    not a sign of a hung actor.
    """
    timeout = limit if isinstance(limit, asyncio.Timeout) else asyncio.timeout(limit)
    try:
        async with timeout:
            return await remote
    except RayTaskError as error:
        if not isinstance(error.cause, EngineDiedError):
            raise error.cause from error
        raise LostError(_said(error.cause)) from error
    except TimeoutError as error:
        raise LateError(_said(error) or "no answer within its deadline") from error
    except LOST as error:
        raise LostError(_said(error)) from error


def was_evicted(lost: LostError) -> bool:
    """Whether an actor's process or node ended, and the actor did not fail in its constructor."""
    return isinstance(lost.__cause__, RayActorError) and not lost.__cause__.actor_init_failed


async def all_or_none(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do all at once; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _said(error: BaseException) -> str:
    """The first line of an error; a timeout says nothing of its own."""
    return str(error).strip().partition("\n")[0]
