"""Fleets and their places: who has none is named, and on real Ray members come, wait and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter

import pytest
import ray
from ray.actor import ActorHandle

from cluster.calls import all_or_none
from cluster.faults import RunError
from cluster.fleet import Fleet
from cluster.reserving import actor_class
from configs.errors import UserError
from configs.fleets import FleetConfig
from tests.cluster.local_actors import World, states, until, use_fleet, with_fleet, with_new_fleet


def test_a_newcomer_without_a_place_is_named_and_joins_when_it_has_one(caplog):
    async def use(world: World, fleet: Fleet) -> None:
        world.may_start.clear()
        world.lacks = {"rollout-2": "it asks for 1 GPU on one node, and there is none"}
        fleet.resize(3)
        await until(lambda: fleet.unplaced)
        sentence = "rollout-2 has no place: it asks for 1 GPU on one node, and there is none"
        assert fleet.unplaced == {"rollout-2": sentence}
        assert (await fleet.call("work", 1))[1] == 1
        world.lacks.clear()
        await until(lambda: not fleet.unplaced)
        world.may_start.set()
        await until(lambda: len(fleet.serving()) == 3)
        assert [actor.name for actor in world.actors].count("rollout-2") == 1
        assert caplog.text.count(sentence) == 1

    # It is looked after when its start would be over, once before and once after it has a place.
    with_fleet(use, placement_deadline_s=20, start_deadline_s=0.2)


def test_a_start_that_hangs_has_a_deadline_although_the_wait_for_a_place_has_none(caplog):
    async def use(world: World, fleet: Fleet) -> None:
        world.may_start.clear()
        fleet.resize(3)
        await until(lambda: fleet.target == 2)
        assert fleet.unplaced == {}

    with_fleet(use, placement_deadline_s=0.01, start_deadline_s=0.1)
    assert "rollout-2 is lost: start: no answer within its deadline" in caplog.text


def test_a_fleet_of_which_none_has_a_place_ends_the_run_and_says_what_is_missing():
    async def use(world: World, fleet: Fleet) -> None:
        world.may_start.clear()
        world.lacks = {"rollout-0": "it asks for 1 GPU and there is none"}
        world.named("rollout-0").die()
        with pytest.raises(RunError, match="no member of fleet rollout serves, and rollout-0 has"):
            await fleet.call("work", 1)

    with_fleet(use, replicas=1, placement_deadline_s=0.02, start_deadline_s=0.2)


def test_a_fleet_that_finds_no_place_at_its_start_says_what_is_missing(caplog):
    async def use(world: World, fleet: Fleet) -> None:
        world.may_start.clear()
        world.lacks = dict.fromkeys(["rollout-0", "rollout-1"], "it asks for 1 GPU")
        with pytest.raises(UserError, match=r"within 0\.2 s: rollout-\d has no place: it asks"):
            await fleet.start()

    with_new_fleet(use, placement_deadline_s=0.02, start_deadline_s=0.2)
    assert "rollout-1 has no place: it asks for 1 GPU" in caplog.text


def test_a_fleet_starts_with_those_that_have_a_place_and_the_others_join_later(caplog):
    async def use(world: World, fleet: Fleet) -> None:
        world.lacks = {"rollout-1": "it asks for 1 GPU"}
        world.may_start_too["rollout-1"] = asyncio.Event()
        await fleet.start()
        assert set(fleet.serving()) == {"rollout-0", "rollout-2"}
        assert set(fleet.unplaced) == {"rollout-1"}
        await asyncio.sleep(0.5)  # longer than a start may take
        assert (await fleet.call("work", 1))[1] == 1
        await world.publish(fleet, 1)
        world.lacks.clear()
        world.may_start_too["rollout-1"].set()
        await until(lambda: len(fleet.serving()) == 3)
        assert {actor.version for actor in world.actors} == {1}

    world = with_new_fleet(use, replicas=3, placement_deadline_s=0.02, start_deadline_s=0.2)
    assert [actor.name for actor in world.actors].count("rollout-1") == 1
    assert "rollout-1 has no place: it asks for 1 GPU" in caplog.text


def test_fleets_that_start_together_ask_for_a_place_each_before_any_asks_for_more():
    async def run() -> None:
        world = World()
        fleets = [world.fleet(2), world.fleet(3)]
        await all_or_none([fleet.start() for fleet in fleets])
        firsts, rest = world.actors[:2], world.actors[2:]
        assert [actor.name for actor in firsts] == ["rollout-0", "rollout-0"]
        assert Counter(a.name for a in rest) == {"rollout-1": 2, "rollout-2": 1}
        for fleet in fleets:
            await fleet.stop()

    asyncio.run(run())


def test_a_start_goes_on_when_a_member_has_come_back():
    async def use(world: World, fleet: Fleet) -> None:
        world.lacks = {"rollout-1": "it asks for 1 GPU"}
        world.may_start_too["rollout-1"] = asyncio.Event()
        start = asyncio.ensure_future(fleet.start())
        await until(lambda: fleet.serving())
        # Lost before the other is known to have no place; its next process takes its time.
        world.may_start_too["rollout-0"] = asyncio.Event()
        fleet.replace("rollout-0", "dead")
        await until(lambda: fleet.unplaced)
        assert not start.done()
        world.may_start_too["rollout-0"].set()
        await asyncio.wait_for(start, 2)
        assert set(fleet.serving()) == {"rollout-0"}

    with_new_fleet(use, placement_deadline_s=0.2, start_deadline_s=5)


def test_where_members_start_one_by_one_one_without_a_place_does_not_end_what_serves():
    async def use(world: World, fleet: Fleet) -> None:
        world.lacks = {"rollout-1": "it asks for 0.5 GPU"}
        for name in ("rollout-1", "rollout-2"):
            world.may_start_too[name] = asyncio.Event()
        start = asyncio.ensure_future(fleet.start())
        await until(lambda: fleet.unplaced)
        await asyncio.sleep(0.2)
        world.may_start_too["rollout-2"].set()
        await asyncio.wait_for(start, 2)
        await asyncio.sleep(0.5)  # longer than a start may take
        assert (await fleet.call("work", 1))[1] == 1
        assert set(fleet.serving()) == {"rollout-0", "rollout-2"}

    with_new_fleet(use, replicas=3, gpus=0.5, placement_deadline_s=0.02, start_deadline_s=0.3)


@pytest.mark.parametrize("error", ["dies", "has no place"])
def test_the_first_fault_of_a_start_ends_it_and_leaves_no_actor(error):
    async def use(world: World, fleet: Fleet) -> None:
        world.may_start_too |= {"rollout-1": asyncio.Event(), "rollout-2": asyncio.Event()}
        if error == "dies":
            world.cannot_start = {"rollout-0"}
        else:
            world.lacks = dict.fromkeys(["rollout-0", "rollout-1"], "it asks for 1 GPU")
            world.may_start_too["rollout-0"] = asyncio.Event()
        with pytest.raises((RunError, UserError), match=r"could not start|did not start within"):
            await fleet.start()

    world = with_new_fleet(use, replicas=3, placement_deadline_s=0.02, start_deadline_s=0.2)
    assert sorted(world.killed) == ["rollout-0", "rollout-1", "rollout-2"]


@pytest.mark.parametrize(("evictions", "starts"), [(2, True), (3, False)])
def test_an_actor_that_is_evicted_while_its_fleet_starts_has_other_tries(evictions, starts):
    async def use(world: World, fleet: Fleet) -> None:
        world.evictions["rollout-1"] = evictions
        with contextlib.nullcontext() if starts else pytest.raises(RunError, match="could not"):
            await fleet.start()
        assert len(fleet.serving()) == (2 if starts else 1)
        assert (fleet.target, fleet.restarts) == (2, 0)

    world = with_new_fleet(use)
    made = [actor.name for actor in world.actors].count("rollout-1")
    assert made == 3


def test_a_call_without_a_member_counts_as_waiting():
    async def use(world: World, fleet: Fleet) -> None:
        world.may_start.clear()
        world.named("rollout-0").die()
        calls = [asyncio.ensure_future(fleet.call("work", item)) for item in range(3)]
        await until(lambda: fleet.waiting == 3)
        assert fleet.in_flight == 0
        world.may_start.set()
        await asyncio.gather(*calls)
        assert fleet.waiting == 0

    with_fleet(use, replicas=1)


# --- on Ray ---


class Worker:
    """An actor that works for as long as it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def describe(self) -> dict:
        return {"name": self.name, "pid": os.getpid()}

    async def work(self, item: int, seconds: float = 0.0) -> tuple[str, int]:
        await asyncio.sleep(seconds)
        return self.name, item

    async def stop(self) -> None: ...


def ray_fleet(replicas: int, **config: object) -> Fleet:
    settings = {"replicas": replicas, "cpus": 0, "deadline_s": 60, "placement_deadline_s": 0.5}
    fleet_config = FleetConfig.model_validate(settings | config)
    made = {"rollout-0": fleet_config.model_copy(update={"gpus": 0.0, "labels": {}, "cpus": 0})}

    def spawn(name: str) -> ActorHandle:
        return actor_class(Worker, made.get(name, fleet_config)).remote(name)

    return Fleet("rollout", fleet_config, spawn)


@pytest.mark.usefixtures("ray_session")
def test_a_fleet_grows_and_shrinks_on_ray_under_load_and_one_leaver_is_killed():
    async def use(fleet: Fleet) -> None:
        calls = [asyncio.ensure_future(fleet.call("work", i, 0.02 * (i % 5))) for i in range(40)]
        fleet.resize(4)
        await until(lambda: len(fleet.serving()) == 4)
        pids = {member["name"]: member["pid"] for member in fleet.describe()}
        calls += [asyncio.ensure_future(fleet.call("work", i, 1.0)) for i in range(40, 60)]
        await asyncio.sleep(0)
        fleet.resize(2)
        leavers = sorted(name for name, state in states(fleet).items() if state == "draining")
        assert leavers == ["rollout-2", "rollout-3"]
        os.kill(pids["rollout-3"], 9)
        results = await asyncio.gather(*calls)
        assert [item for _, item in results] == list(range(60))
        by_whom = Counter(name for name, item in results[40:])
        assert by_whom["rollout-2"] == 5
        assert by_whom["rollout-3"] == 0
        await until(lambda: len(states(fleet)) == 2)
        await until(lambda: not any(os.path.exists(f"/proc/{pids[name]}") for name in leavers))
        assert fleet.restarts == 0

    use_fleet(ray_fleet(2), use)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"gpus": 1}, r"asks for 1 GPU on one node, and no node has more than 0 GPUs"),
        ({"labels": {"kind": "rollout"}}, r"no node has the label kind=rollout"),
    ],
)
def test_ray_tells_who_has_no_place_and_a_pending_actor_can_leave(asked, sentence):
    async def use(fleet: Fleet) -> None:
        fleet.resize(2)
        await until(lambda: fleet.unplaced)
        assert sentence in fleet.unplaced["rollout-1"]
        assert await fleet.call("work", 7) == ("rollout-0", 7)
        fleet.resize(1)
        await until(lambda: set(states(fleet)) == {"rollout-0"})
        assert fleet.unplaced == {}

    use_fleet(ray_fleet(1, **asked), use)


@pytest.mark.usefixtures("ray_session")
def test_on_ray_a_pending_actor_joins_when_its_place_is_free():
    free = ray.available_resources()["CPU"]

    async def use(fleet: Fleet) -> None:
        holder = ray.remote(Worker).options(num_cpus=free).remote("holder")
        await holder.describe.remote()
        fleet.resize(2)
        await until(lambda: fleet.unplaced)
        assert (
            "asks for 1 CPU on one node, and the cluster has 0 CPUs free"
            in (fleet.unplaced["rollout-1"])
        )
        ray.kill(holder)
        await until(lambda: len(fleet.serving()) == 2)
        assert fleet.unplaced == {}

    use_fleet(ray_fleet(1, cpus=1), use)
