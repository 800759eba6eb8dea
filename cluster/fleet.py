"""A fleet: equal Ray actors behind one `call`, restarted when they die or hang, resized in use.

Invariants: each call returns the result of exactly one execution, whatever dies or leaves meanwhile
(a result of a lost member is never looked at again); only SERVING members get work; a name is given
once; weights change, and members join, only under `weights`, so that none joins with weights that a
publish has passed; a leaver is ended when they have rested, so that no transfer can reach it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle

from cluster.admission import Admissions, CatchUp
from cluster.arrival import Arrivals, Lacking, UnplacedError, start_error
from cluster.calls import LateError, LostError, LostWithAnotherError, ask, was_evicted
from cluster.faults import RunError
from cluster.heartbeat import listen
from cluster.member import Event, Member, State
from cluster.missing import lacking
from cluster.routing import LeastLoaded
from cluster.seat import AT_WORK, Seat
from configs.errors import UserError
from configs.fleets import FleetConfig

log = logging.getLogger(__name__)

STARTS = 3
"""How often an actor may fail to start before it, or a fleet that starts, is given up."""

Spawn = Callable[[str], ActorHandle]
Kill = Callable[[ActorHandle], None]


class Fleet:
    """The actors `name-0` … of one kind.

    `spawn(name)` makes an actor (not restarted by Ray itself, and without a Ray name, since its
    predecessor may still be dying); `kill(actor)` ends its process; `catch_up` as in `Admissions`;
    `lacking` as in `Arrivals`.
    """

    def __init__(
        self,
        name: str,
        config: FleetConfig,
        spawn: Spawn,
        catch_up: CatchUp | None = None,
        kill: Kill = ray.kill,
        lacking: Lacking = lacking,
    ) -> None:
        self.name = name
        self.config = config
        self.target = config.replicas
        """How many members there are to be, those that leave not counted."""
        self.weights = asyncio.Lock()
        self.restarts = self._counted = 0
        self.call_seconds = 0.0
        """Seconds that calls took, their waits included, added up; those of unfinished ones not."""
        self.waiting = 0
        """Calls that wait until a member serves."""
        self._spawn = spawn
        self._kill = kill
        self._admissions = Admissions(config, self.weights, catch_up, kill, self._serve)
        self._news = asyncio.Event()
        """Set when a member serves or has no place, or the fleet has failed."""
        self._arrivals = Arrivals(config, lacking, self._news.set)
        self.unplaced = self._arrivals.unplaced
        """What those members lack that have waited too long for a place, as a sentence by name."""
        self._members = (Member(f"{name}-{number}") for number in itertools.count())
        self._seats = [Seat(next(self._members)) for _ in range(config.replicas)]
        self._routes: LeastLoaded[Seat] = LeastLoaded()
        self._answerable = asyncio.Event()
        """Set while a call need not wait: a member serves, or the fleet has failed."""
        self._version: int | None = None
        self._started = False
        self._fault: UserError | RunError | None = None
        self._first_cause: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start every member at once, or one by one where they share a GPU (vLLM takes what grows
        there meanwhile for its own); return when all serve that have a place, one at least. Raises
        UserError where one cannot be made or does not answer in time."""
        every = list(self._seats)
        for seats in [[seat] for seat in every] if self.config.shares_gpus else [every]:
            self._begin(seats[0])
            # Fleets that start side by side each ask for one place before any asks for its second.
            await asyncio.sleep(0)
            for seat in seats[1:]:
                self._begin(seat)
            await self._came_up(seats)
        log.info("%s: %d of %d actors serve", self.name, len(self._routes), len(every))
        self._started = True
        self._settle()

    @property
    def in_flight(self) -> int:
        """Calls in the members' hands."""
        return sum(len(seat.calls) for seat in self._seats)

    def resize(self, target: int) -> None:
        """Let there be `target` members: newcomers join and leavers leave in the background.

        The last target counts, whatever is still under way; before the fleet has started, it
        counts from then on. Raises UserError below 1, and what the fleet has failed of.
        """
        if target < 1:
            raise UserError(
                f"fleet {self.name} cannot be scaled to {target}: it needs at least 1 actor; to end"
                " the run, stop it"
            )
        self._check()
        log.info("%s: from %d to %d actors", self.name, self.target, target)
        self.target = target
        if self._started:
            self._settle()

    async def call(self, method: str, *args: Any) -> Any:
        """`method(*args)` of the least loaded member; redone on another when that one is lost.

        Exceptions of the method itself propagate as they were raised in the actor. Raises
        RunError when the fleet has used up its restarts.
        """
        started = time.monotonic()
        try:
            return await self._call(method, *args)
        finally:
            self.call_seconds += time.monotonic() - started

    async def _call(self, method: str, *args: Any) -> Any:
        while True:
            seat = await self._least_loaded(method)
            member, limit = seat.member, asyncio.timeout(self.config.deadline_s)
            seat.calls.add(limit)
            try:
                return await ask(seat.handle, limit, method, *args)
            except LostError as lost:
                if isinstance(lost, LateError) and seat.member.state is State.DRAINING:
                    log.warning("%s leaves: another redoes %s", member.name, method)
                else:
                    self._lose(seat, member, f"{method}: {lost}")
            finally:
                seat.calls.discard(limit)
                self._routes.give_back(seat)
                seat.note_idle()

    async def call_each(self, method: str, *args: Any) -> None:
        """`method(*args)` of every member that serves or leaves; one that is lost is restarted."""
        seats = [s for s in self._seats if s.answered and s.member.state in AT_WORK]
        await asyncio.gather(*(self._tell(seat, method, *args) for seat in seats))

    def serving(self) -> dict[str, ActorHandle]:
        """The members that get work, by name."""
        serving = (seat for seat in self._seats if seat.member.state is State.SERVING)
        return {seat.member.name: seat.handle for seat in serving if seat.handle is not None}

    def replace(self, name: str, cause: str, *, counts: bool = True) -> None:
        """Restart a member that its user has found to be of no use; one that leaves is ended. What
        `counts` not towards `config.restarts` was lost together with another."""
        for seat in self._seats:
            if seat.member.name == name and seat.member.state in AT_WORK:
                self._lose(seat, seat.member, cause, counts=counts)

    def note_progress(self) -> None:
        """An iteration is trained: what was lost until now was survived."""
        self._counted, self._first_cause = 0, None

    def note_version(self, version: int, names: Iterable[str]) -> None:
        """A publish has brought these members to `version`; who catches up from now on has it."""
        self._version, reached = version, set(names)
        for seat in self._seats:
            if seat.member.name in reached:
                seat.version = version

    def describe(self) -> list[dict[str, Any]]:
        """Each member's name, state, load, version, and what it said of itself at its start."""
        return [seat.describe() for seat in self._seats]

    async def stop(self) -> None:
        """End every member; no process of the fleet is left, and calls fail from now on."""
        self._fail(RunError(f"fleet {self.name} is stopped"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._retire(seat) for seat in self._seats))

    # --- calls ---

    async def _least_loaded(self, method: str) -> Seat:
        while True:
            self._check()
            if (seat := self._routes.take()) is not None:
                return seat
            log.info("%s: %s waits until a member serves", self.name, method)
            self.waiting += 1
            try:
                await self._answerable.wait()
            finally:
                self.waiting -= 1

    async def _tell(self, seat: Seat, method: str, *args: Any) -> None:
        """One call to this very member."""
        member = seat.member
        try:
            await ask(seat.handle, self.config.deadline_s, method, *args)
        except LostError as lost:
            self._lose(seat, member, f"{method}: {lost}")

    def _cut(self, seat: Seat) -> None:
        """Give it no more work."""
        self._routes.remove(seat)
        if not self._routes and self._fault is None:
            self._answerable.clear()

    # --- joining ---

    async def _came_up(self, seats: Sequence[Seat]) -> None:
        """Wait until those serve that have a place, and any of the fleet."""
        while True:
            self._check()
            waiting = {s.member.name for s in seats if s.member.state is not State.SERVING}
            if not waiting or (self._routes and waiting <= self.unplaced.keys()):
                return
            self._news.clear()
            await self._news.wait()

    def _begin(self, seat: Seat) -> None:
        seat.joining = self._in_background(self._bring_in(seat))

    async def _bring_in(self, seat: Seat) -> None:
        name = seat.member.name
        log.info("%s: waiting until it serves", name)
        try:
            await self._join(seat)
        except LostError as lost:
            again = was_evicted(lost) and seat.member.incarnation + 1 < STARTS
            if not (self._started or seat.served or again):
                self._fail(start_error(self.name, self.config, lost), lost.__cause__)
            elif isinstance(lost, UnplacedError):
                alone = f"no member of fleet {self.name} serves, and {lost}"
                self._fail(RunError(f"{alone}: free that or add nodes"))
            else:
                counts = not isinstance(lost, LostWithAnotherError)
                self._lose(seat, seat.member, f"start: {lost}", counts=counts)
        except Exception as error:  # noqa: BLE001 (raised to whoever calls the fleet next)
            what = "be restarted" if seat.member.incarnation else "join"
            self._fail(RunError(f"{name} could not {what}: {error}"), error)
        else:
            log.info("%s: %s", name, seat.member.state.value)

    async def _join(self, seat: Seat) -> None:
        """STARTING → STALE → SERVING, or no further where it is told to leave; LostError."""
        name = seat.member.name
        seat.handle = self._spawn(name)
        seat.about = await self._arrivals.arrival(name, seat.handle, self._may_wait)
        seat.answered, seat.version = True, seat.about.get("version")
        seat.member = seat.member.after(Event.READY)
        await self._admissions.admit(seat)

    def _serve(self, seat: Seat) -> None:
        """A newcomer holds the current weights: it gets work."""
        seat.version = seat.version if self._version is None else self._version
        seat.member = seat.member.after(Event.CURRENT)
        seat.served = True
        self._routes.add(seat, len(seat.calls))
        self._answerable.set()
        self._news.set()
        lose = partial(self._lose, seat, seat.member)
        self._in_background(listen(seat, self.config.silence_s, lose))

    def _may_wait(self) -> bool:
        """Whether a newcomer may go on waiting for a place: not where nothing can go on without."""
        return len(self._routes) > 0 or (self._started and len(self.unplaced) < self.target)

    # --- leaving ---

    def _settle(self) -> None:
        """Bring the members that stay to the target; those that serve least leave first."""
        staying = [seat for seat in self._seats if seat.stays]
        for _ in range(len(staying), self.target):
            newcomer = Seat(next(self._members))
            self._seats.append(newcomer)
            self._begin(newcomer)
        # Of those of the same use the one without a place leaves first, then the youngest.
        staying.sort(key=lambda seat: seat.member.name in self.unplaced)
        staying.sort(key=lambda seat: seat.use, reverse=True)
        for seat in staying[self.target :]:
            self._drain(seat)

    def _drain(self, seat: Seat) -> None:
        """Let it leave in the background, without more work."""
        log.info("%s leaves with %d calls in its hands", seat.member.name, len(seat.calls))
        self._cut(seat)
        if seat.member.state is State.STARTING and seat.joining is not None:
            seat.joining.cancel()
        seat.drain(asyncio.get_running_loop().time() + self.config.drain_deadline_s)
        self._in_background(self._leave(seat))

    async def _leave(self, seat: Seat) -> None:
        """End a leaver: once its calls are done or redone, and no transfer can reach it."""
        if seat.answered:
            log.info("%s: waiting for its calls, then for the weights to rest", seat.member.name)
            await seat.idle.wait()  # the calls have deadlines
            async with self.weights:
                pass  # a transfer that began with it has ended, and none begins with a leaver
        await self._retire(seat)
        self._forget(seat)

    async def _retire(self, seat: Seat) -> None:
        if seat.member.state is State.GONE:
            return
        self._cut(seat)
        if seat.stays:
            seat.member = seat.member.after(Event.DRAIN)
        try:
            await seat.ask_to_stop()
        finally:
            self._end(seat)
        if seat.member.state is State.DRAINING:
            seat.member = seat.member.after(Event.DRAINED)

    def _forget(self, seat: Seat) -> None:
        self._seats = [other for other in self._seats if other is not seat]
        log.info("%s has left", seat.member.name)

    # --- dying ---

    def _lose(self, seat: Seat, member: Member, cause: str, *, counts: bool = True) -> None:
        """A call to `member` found it dead or hung; later calls that find the same do nothing."""
        known = seat.member.state in (State.DEAD, State.GONE)
        if known or seat.member.incarnation != member.incarnation:
            return
        log.warning("%s is lost: %s", member.name, cause)
        self._cut(seat)
        seat.die()
        self._end(seat)
        if seat.member.state is State.GONE:
            self._forget(seat)
        elif seat.served:
            self._restart(seat, cause, counts=counts)
        else:
            self._start_again(seat, cause)

    def _restart(self, seat: Seat, cause: str, *, counts: bool) -> None:
        self._first_cause = self._first_cause or f"{seat.member.name}: {cause}"
        most = self.config.restarts and max(self.config.restarts, self.target)
        if counts and self._counted >= most:
            seat.member = seat.member.after(Event.GIVE_UP)
            spent = f"has used up its {most} restarts ({self.name}.restarts) between iterations"
            self._fail(RunError(f"fleet {self.name} {spent}; first lost was {self._first_cause}"))
            return
        self.restarts += 1
        self._counted += counts
        seat.member = seat.member.after(Event.RESTART)
        self._begin(seat)

    def _start_again(self, seat: Seat, cause: str) -> None:
        """A newcomer that cannot start does not end a run that goes on without it."""
        if seat.member.incarnation + 1 < STARTS:
            seat.member = seat.member.after(Event.RESTART)
            self._begin(seat)
            return
        seat.member = seat.member.after(Event.GIVE_UP)
        self._forget(seat)
        self.target -= 1
        log.error(
            "%s is given up after %d starts, and %d actors go on without it: %s",
            *(seat.member.name, STARTS, self.target, cause),
        )

    def _fail(self, fault: UserError | RunError, cause: BaseException | None = None) -> None:
        """End all calls, present and to come, with the first fault."""
        if self._fault is None:
            self._fault, fault.__cause__ = fault, cause
        self._answerable.set()
        self._news.set()

    def _check(self) -> None:
        if self._fault is not None:
            # A copy: every call that raised the one object would add to its traceback.
            raise type(self._fault)(*self._fault.args) from self._fault.__cause__

    def _end(self, seat: Seat) -> None:
        if seat.handle is not None:
            self._kill(seat.handle)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
