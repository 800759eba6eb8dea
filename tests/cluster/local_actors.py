"""Actors in this process behind the handles of Ray, for what depends on the order of events."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace

from ray.exceptions import RayActorError

from cluster.fleet import Fleet
from configs.fleets import FleetConfig


class Actor:
    """An actor and its handle: `handle.method.remote()` is a future that its death ends."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.version = 0
        self.dead = False
        self.stopped = False
        self._pending: set[asyncio.Future] = set()

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *args: self._call(method, *args))

    def die(self, *, by_itself: bool = False) -> None:
        self.dead = True
        for answer in self._pending:
            if not answer.done():
                answer.set_exception(RayActorError(actor_init_failed=by_itself))

    def _call(self, method: str, *args: object) -> asyncio.Future:
        answer = asyncio.get_running_loop().create_future()
        self._pending.add(answer)
        if self.dead:
            answer.set_exception(RayActorError())
            return answer
        if self.name in self.world.silent:
            return answer
        work = asyncio.ensure_future(getattr(self, f"_{method}")(*args))
        self.world.works.add(work)

        def hand_over(work: asyncio.Future) -> None:
            self.world.works.discard(work)
            if not answer.done() and not work.cancelled():
                answer.set_result(work.result())

        work.add_done_callback(hand_over)
        return answer

    async def _describe(self) -> dict:
        await self.world.may_start.wait()
        if self.name in self.world.may_start_too:
            await self.world.may_start_too[self.name].wait()
        if self.name in self.world.cannot_start:
            self.die(by_itself=True)
        if self.world.evictions[self.name]:
            self.world.evictions[self.name] -= 1
            self.die()
        return {"name": self.name, "version": 0}

    async def _work(self, item: int, gate: asyncio.Event | None = None) -> tuple[str, int, int]:
        """Return who did it, what, and with which version it was begun."""
        self.world.begun.append((self.name, item))
        version = self.version
        if gate is not None:
            await gate.wait()
        else:
            await asyncio.sleep(0)
        self.world.ended[item] += 1
        return self.name, item, version

    async def _take(self, version: int) -> None:
        self.version = version

    async def _sleep(self) -> None:
        self.world.asleep.append(self.name)

    async def _stop(self) -> None:
        self.world.stopping.set()
        await self.world.may_stop.wait()
        self.stopped = True


class World:
    """Every actor that was made, and what they did."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.killed: list[str] = []
        self.begun: list[tuple[str, int]] = []
        self.ended: Counter[int] = Counter()
        self.asleep: list[str] = []
        self.cannot_start: set[str] = set()
        self.evictions: Counter[str] = Counter()
        """How many processes of a name are yet to die while they start."""
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.may_start_too: dict[str, asyncio.Event] = {}
        """What else those of a name wait for."""
        self.works: set[asyncio.Future] = set()
        self.version = 0
        self.may_catch_up = asyncio.Event()
        self.may_catch_up.set()
        self.catching_up = asyncio.Event()
        self.transfers: list[list[str]] = []
        """The names of those that caught up together."""
        self.deadly: Counter[str] = Counter()
        """How many transfers to newcomers a name is yet to die in."""
        self.silent: set[str] = set()
        """Whose processes answer nothing, until they are killed."""
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.stopping = asyncio.Event()
        self.lacks: dict[str, str] = {}
        """What keeps an actor from having a place, by name."""

    def fleet(self, replicas: int = 2, **config: object) -> Fleet:
        """A fleet of these actors."""
        settings = {"replicas": replicas, "deadline_s": 20, "start_deadline_s": 20} | config
        return Fleet(
            "rollout",
            FleetConfig.model_validate(settings),
            self._spawn,
            self._catch_up,
            self._kill,
            lambda actor, _: self.lacks.get(actor.name),
        )

    async def publish(self, fleet: Fleet, version: int) -> set[str]:
        """Give the serving members a version, as `Policy` does; return who got it."""
        self.version = version
        reached = set()
        for name, member in fleet.serving().items():
            try:
                await member.take.remote(version)
            except RayActorError:
                fleet.replace(name, f"publish of version {version}: dead")
            else:
                reached.add(name)
        fleet.note_version(version, reached)
        return reached

    def named(self, name: str) -> Actor:
        """The youngest process of that name."""
        return [actor for actor in self.actors if actor.name == name][-1]

    def _spawn(self, name: str) -> Actor:
        self.actors.append(Actor(self, name))
        return self.actors[-1]

    def _kill(self, actor: Actor) -> None:
        self.killed.append(actor.name)
        self.silent.discard(actor.name)
        actor.die()

    async def _catch_up(self, members: Mapping[str, Actor]) -> dict[str, str]:
        """One transfer to all, as over NCCL: where one dies in it, all are lost."""
        version = self.version
        self.transfers.append(sorted(members))
        self.catching_up.set()
        await self.may_catch_up.wait()
        try:
            for name, member in members.items():
                if self.deadly[name]:
                    self.deadly[name] -= 1
                    member.die()
                await member.take.remote(version)
        except RayActorError:
            return dict.fromkeys(members, "the transfer broke")
        return {}


def with_fleet(use, replicas: int = 2, **config: object) -> World:
    """Start a fleet, use it as `use(world, fleet)`, and end it."""

    async def started(world: World, fleet: Fleet) -> None:
        await fleet.start()
        world.catching_up.clear()
        await use(world, fleet)

    return with_new_fleet(started, replicas, **config)


def with_new_fleet(use, replicas: int = 2, **config: object) -> World:
    """Use a fleet, which is not started, as `use(world, fleet)`, and end it."""

    async def run() -> World:
        world = World()
        fleet = world.fleet(replicas, **config)
        try:
            await asyncio.wait_for(use(world, fleet), 90)
        finally:
            await fleet.stop()
        return world

    return asyncio.run(run())


def use_fleet(fleet: Fleet, use) -> None:
    """Start a fleet of Ray actors, use it as `use(fleet)`, and end it."""

    async def run() -> None:
        try:
            await fleet.start()
            await asyncio.wait_for(use(fleet), 90)
        finally:
            await fleet.stop()

    asyncio.run(run())


async def until(condition) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


def states(fleet: Fleet) -> dict[str, str]:
    return {member["name"]: member["state"] for member in fleet.describe()}


async def begun(world: World, fleet: Fleet, items, gate=None) -> list[asyncio.Task]:
    """Calls that members have begun to work on; `gate` lets them end."""
    calls = [asyncio.ensure_future(fleet.call("work", item, gate)) for item in items]
    await until(lambda: set(items) <= {item for _, item in world.begun})
    return calls
