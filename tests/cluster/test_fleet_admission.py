"""Newcomers that catch up together: one transfer for all that wait, and no harm to one another."""

from __future__ import annotations

import asyncio

from cluster.fleet import STARTS, Fleet
from tests.cluster.local_actors import World, begun, states, until, with_fleet

NEWCOMERS = ["rollout-2", "rollout-3", "rollout-4"]


async def until_stale(fleet: Fleet, count: int) -> None:
    await until(lambda: list(states(fleet).values()).count("stale") == count)


async def publish(world: World, fleet: Fleet, version: int) -> set[str]:
    async with fleet.weights:
        return await world.publish(fleet, version)


def test_all_newcomers_that_wait_for_the_weights_catch_up_in_one_transfer():
    async def use(world: World, fleet: Fleet) -> None:
        world.transfers.clear()
        async with fleet.weights:
            fleet.resize(5)
            await until_stale(fleet, 3)
            await world.publish(fleet, 3)
        await until(lambda: len(fleet.serving()) == 5)
        assert world.transfers == [NEWCOMERS]
        assert {actor.version for actor in fleet.serving().values()} == {3}
        assert [member["version"] for member in fleet.describe()] == [3] * 5

    with_fleet(use)


def test_those_that_come_during_a_transfer_have_the_next_one_together():
    async def use(world: World, fleet: Fleet) -> None:
        world.transfers.clear()
        world.may_catch_up.clear()
        fleet.resize(3)
        await world.catching_up.wait()
        fleet.resize(5)
        await until_stale(fleet, 3)
        world.may_catch_up.set()
        await until(lambda: len(fleet.serving()) == 5)
        assert world.transfers == [NEWCOMERS[:1], NEWCOMERS[1:]]

    with_fleet(use)


def test_a_publish_right_behind_a_transfer_reaches_all_that_were_in_it():
    async def use(world: World, fleet: Fleet) -> None:
        async with fleet.weights:
            fleet.resize(3)
            await until_stale(fleet, 1)
            publishing = asyncio.ensure_future(publish(world, fleet, 7))
            await asyncio.sleep(0)
            # These ask for the weights after the publish has, and get them before it.
            fleet.resize(5)
            await until_stale(fleet, 3)
        assert await publishing == {"rollout-0", "rollout-1", *NEWCOMERS}
        assert {actor.version for actor in fleet.serving().values()} == {7}
        results = await asyncio.gather(*await begun(world, fleet, range(10)))
        assert {version for *_, version in results} == {7}

    with_fleet(use)


def test_a_newcomer_that_always_dies_in_its_catch_up_takes_the_others_with_it_only_once(caplog):
    async def use(world: World, fleet: Fleet) -> None:
        world.transfers.clear()
        world.deadly["rollout-3"] = STARTS
        async with fleet.weights:
            fleet.resize(5)
            await until_stale(fleet, 3)
        await until(lambda: fleet.target == 4 and len(fleet.serving()) == 4)
        assert set(fleet.serving()) == {"rollout-0", "rollout-1", "rollout-2", "rollout-4"}
        assert world.transfers[0] == NEWCOMERS
        alone = sorted(name for (name,) in world.transfers[1:])
        assert alone == ["rollout-2", "rollout-3", "rollout-3", "rollout-4"]
        assert fleet.restarts == 0

    with_fleet(use, restarts=0)
    assert "rollout-3 is given up after 3 starts" in caplog.text


def test_a_broken_catch_up_of_restarted_members_is_one_of_the_restarts_that_a_run_has():
    async def use(world: World, fleet: Fleet) -> None:
        world.transfers.clear()
        world.deadly["rollout-1"] = 1
        async with fleet.weights:
            for name in fleet.serving():
                fleet.replace(name, "the publish broke", counts=name == "rollout-0")
            await until_stale(fleet, 3)
        await until(lambda: len(fleet.serving()) == 3)
        assert len(world.transfers[0]) == 3
        assert fleet.restarts == 6

    with_fleet(use, replicas=3, restarts=2)


def test_a_newcomer_that_is_silent_in_a_transfer_is_ended_and_the_others_wait_no_longer(caplog):
    async def use(world: World, fleet: Fleet) -> None:
        world.may_catch_up.clear()
        async with fleet.weights:
            fleet.resize(4)
            await until_stale(fleet, 2)
        await world.catching_up.wait()
        world.silent.add("rollout-3")
        world.may_catch_up.set()
        await until(lambda: len(fleet.serving()) == 4)

    with_fleet(use, silence_s=0.5)
    assert "rollout-3 is ended while it catches up: heartbeat: no answer" in caplog.text


def test_one_of_several_newcomers_that_is_told_to_leave_never_serves():
    async def use(world: World, fleet: Fleet) -> None:
        world.may_catch_up.clear()
        async with fleet.weights:
            fleet.resize(5)
            await until_stale(fleet, 3)
        await world.catching_up.wait()
        fleet.resize(4)
        world.may_catch_up.set()
        await until(lambda: len(states(fleet)) == len(fleet.serving()) == 4)
        assert set(fleet.serving()) == {"rollout-0", "rollout-1", "rollout-2", "rollout-3"}
        assert (await fleet.call("work", 1))[1] == 1

    with_fleet(use)


def test_the_weights_do_not_wait_while_the_process_of_a_leaver_stops():
    async def use(world: World, fleet: Fleet) -> None:
        world.may_stop.clear()
        fleet.resize(1)
        await world.stopping.wait()
        assert await publish(world, fleet, 3) == {"rollout-0"}
        assert not world.killed
        world.may_stop.set()
        await until(lambda: world.killed == ["rollout-1"])
        assert world.named("rollout-1").version == 0

    with_fleet(use)
