"""A fleet: equal Ray actors behind one `call`, restarted when they die or hang.

Invariants: each call returns the result of exactly one execution, whatever dies meanwhile (a
result of a lost member is never looked at again); only SERVING members get work; weights change
and members join only under `weights`, so that no member joins with weights a publish has passed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from actors.engine import EngineDiedError
from cluster.faults import RunError
from cluster.member import Event, Member, State
from configs.errors import UserError
from configs.fleets import FleetConfig

log = logging.getLogger(__name__)

LOST = (
    RayActorError,
    ActorUnschedulableError,
    NodeDiedError,
    WorkerCrashedError,
    ObjectLostError,
    EngineDiedError,
    TimeoutError,
)
"""What a wait raises when its member is dead, unreachable, of no use or hung."""
STOP_DEADLINE_S = 5.0

Spawn = Callable[[str], ActorHandle]
CatchUp = Callable[[str, ActorHandle], Awaitable[None]]


class _Lost(Exception):
    """The member that was asked is dead or hung."""


@dataclass(slots=True)
class _Seat:
    """A member with its process and the work it has in hand."""

    member: Member
    handle: ActorHandle | None = None
    in_flight: int = 0
    about: dict[str, Any] = field(default_factory=dict)


class Fleet:
    """The actors `name-0` … of one kind.

    `spawn(name)` makes an actor (not restarted by Ray itself, and without a Ray name, since its
    predecessor may still be dying); `catch_up(name, actor)` gives a newcomer the current weights
    and returns when it holds them.
    """

    def __init__(
        self, name: str, config: FleetConfig, spawn: Spawn, catch_up: CatchUp | None = None
    ) -> None:
        self.name = name
        self.config = config
        self.weights = asyncio.Lock()
        self.restarts = 0
        self._spawn = spawn
        self._catch_up = catch_up
        self._seats = [_Seat(Member(f"{name}-{i}")) for i in range(config.replicas)]
        self._changed = asyncio.Condition()
        self._fault: RunError | None = None
        self._first_cause: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start every member at once, or one by one where they share a GPU; return when all serve.

        vLLM takes whatever else grows on its GPU while it starts for memory of its own. Raises
        UserError where a member cannot be made or does not answer in time.
        """
        log.info("%s: waiting for %d actors to start", self.name, len(self._seats))
        at_once = 1 if self.shares_gpus else len(self._seats)
        try:
            for i in range(0, len(self._seats), at_once):
                await all_or_none([self._join(seat) for seat in self._seats[i : i + at_once]])
        except _Lost as lost:
            raise _start_error(self.name, self.config, lost.__cause__) from lost.__cause__
        log.info("%s: %d actors serve", self.name, len(self._seats))

    @property
    def shares_gpus(self) -> bool:
        """Whether a GPU of this fleet serves others too."""
        return 0 < self.config.gpus < 1

    async def call(self, method: str, *args: Any) -> Any:
        """`method(*args)` of the least loaded member; redone on another when that one is lost.

        Exceptions of the method itself propagate as they were raised in the actor. Raises
        RunError when the fleet has used up its restarts.
        """
        while True:
            seat = await self._least_loaded(method)
            member = seat.member
            seat.in_flight += 1
            try:
                return await _ask(seat.handle, self.config.deadline_s, method, *args)
            except _Lost as lost:
                self._lose(seat, member, f"{method}: {lost}")
            finally:
                seat.in_flight -= 1

    async def call_each(self, method: str, *args: Any) -> None:
        """`method(*args)` of every serving member; one that is lost is left to its restart."""
        seats = [seat for seat in self._seats if seat.member.state is State.SERVING]
        await asyncio.gather(*(self._tell(seat, method, *args) for seat in seats))

    def serving(self) -> dict[str, ActorHandle]:
        """The members that get work, by name."""
        return {
            seat.member.name: seat.handle
            for seat in self._seats
            if seat.member.state is State.SERVING and seat.handle is not None
        }

    def replace(self, name: str, cause: str) -> None:
        """Restart a serving member that its user has found to be of no use."""
        seat = next(seat for seat in self._seats if seat.member.name == name)
        if seat.member.state is State.SERVING:
            self._lose(seat, seat.member, cause)

    def describe(self) -> list[dict[str, Any]]:
        """Each member's name, state, load and what its `describe` said when it started."""
        return [
            seat.about
            | {
                "name": seat.member.name,
                "state": seat.member.state.value,
                "restarts": seat.member.incarnation,
                "in_flight": seat.in_flight,
            }
            for seat in self._seats
        ]

    async def stop(self) -> None:
        """End every member; no process of the fleet is left, and calls fail from now on."""
        self._fault = self._fault or RunError(f"fleet {self.name} is stopped")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._retire(seat) for seat in self._seats))
        await self._notify()

    async def _least_loaded(self, method: str) -> _Seat:
        async with self._changed:
            while True:
                if self._fault is not None:
                    raise self._fault
                serving = [s for s in self._seats if s.member.state is State.SERVING]
                if serving:
                    return min(serving, key=lambda seat: seat.in_flight)
                log.info("%s: %s waits until a member serves", self.name, method)
                await self._changed.wait()

    async def _tell(self, seat: _Seat, method: str, *args: Any) -> None:
        """One call to this very member."""
        member = seat.member
        try:
            await _ask(seat.handle, self.config.deadline_s, method, *args)
        except _Lost as lost:
            self._lose(seat, member, f"{method}: {lost}")

    async def _join(self, seat: _Seat) -> None:
        """STARTING → STALE → SERVING; _Lost where its process does not get there."""
        seat.handle = self._spawn(seat.member.name)
        seat.about = await _ask(seat.handle, self.config.start_deadline_s, "describe")
        seat.member = seat.member.after(Event.READY)
        async with self.weights:
            if self._catch_up is not None:
                catching_up = self._catch_up(seat.member.name, seat.handle)
                await _within(self.config.deadline_s, catching_up)
            seat.member = seat.member.after(Event.CURRENT)
        await self._notify()

    def _lose(self, seat: _Seat, member: Member, cause: str) -> None:
        """A call to `member` found it dead or hung; later calls that find the same do nothing."""
        if seat.member != member:
            return
        log.warning("%s is lost: %s", member.name, cause)
        self._first_cause = self._first_cause or f"{member.name}: {cause}"
        seat.member = seat.member.after(Event.DIED)
        _kill(seat.handle)
        if self.restarts >= self.config.restarts:
            seat.member = seat.member.after(Event.GIVE_UP)
            self._fault = RunError(
                f"fleet {self.name} has used up its {self.config.restarts} restarts"
                f" ({self.name}.restarts); first lost was {self._first_cause}"
            )
            self._in_background(self._notify())
            return
        self.restarts += 1
        seat.member = seat.member.after(Event.RESTART)
        self._in_background(self._rejoin(seat))

    async def _rejoin(self, seat: _Seat) -> None:
        log.info("%s: waiting for its restart", seat.member.name)
        try:
            await self._join(seat)
        except _Lost as lost:
            self._lose(seat, seat.member, f"restart: {lost}")
        except Exception as error:  # noqa: BLE001 (raised to whoever calls the fleet next)
            self._fault = RunError(f"{seat.member.name} could not be restarted: {error}")
            self._fault.__cause__ = error
            await self._notify()
        else:
            log.info("%s serves again", seat.member.name)

    def _in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _retire(self, seat: _Seat) -> None:
        if seat.member.state is State.GONE:
            return
        answers = seat.member.state is not State.STARTING
        seat.member = seat.member.after(Event.DRAIN)
        try:
            if answers:
                await _ask(seat.handle, STOP_DEADLINE_S, "stop")
        except Exception as error:  # noqa: BLE001 (it is killed all the same)
            log.warning("%s: stop: %s", seat.member.name, error)
        finally:
            _kill(seat.handle)
        seat.member = seat.member.after(Event.DRAINED)


async def all_or_none(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do all at once; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _ask(handle: ActorHandle | None, deadline_s: float, method: str, *args: Any) -> Any:
    """One remote call with a deadline."""
    log.debug("waiting for %s", method)
    return await _within(deadline_s, getattr(handle, method).remote(*args))


async def _within(deadline_s: float, remote: Awaitable[Any]) -> Any:
    """Wait for remote work: _Lost where its actor is dead, hung, or alive without its engine.

    Else the work's own exception: an application's TimeoutError is a RayTaskError too, and not a
    sign of a hung actor.
    """
    try:
        return await asyncio.wait_for(remote, deadline_s)
    except RayTaskError as error:
        if not isinstance(error.cause, EngineDiedError):
            raise error.cause from error
        raise _Lost(_said(error.cause)) from error
    except LOST as error:
        raise _Lost(_said(error)) from error


def _kill(handle: ActorHandle | None) -> None:
    if handle is not None:
        ray.kill(handle, no_restart=True)


def _said(error: BaseException) -> str:
    """The first line of an error; `asyncio.wait_for` says nothing of its own."""
    return str(error).strip().partition("\n")[0] or "no answer within its deadline"


def _start_error(name: str, config: FleetConfig, error: BaseException | None) -> Exception:
    """The error of a fleet that does not start, as the user should read it."""
    if isinstance(error, TimeoutError):
        return UserError(
            f"fleet {name}: an actor did not start within {config.start_deadline_s:g} s; see its"
            f" log, free the resources it waits for, or raise {name}.start_deadline_s"
        )
    # Ray hands over a constructor's exception only as text: the last line has its type and message.
    last_line = str(error).strip().rpartition("\n")[2]
    kind, _, message = last_line.partition(": ")
    if kind.endswith("UserError"):
        return UserError(message)
    return RunError(f"fleet {name}: an actor could not start: {last_line}")
