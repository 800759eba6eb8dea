"""Fleets that grow and shrink in use: nothing is lost, doubled, stale, or waited for in vain."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from cluster.faults import RunError
from cluster.fleet import Fleet
from configs.errors import UserError
from tests.cluster.local_actors import World, begun, states, until, with_fleet


def in_hand(fleet: Fleet) -> dict[str, int]:
    return {member["name"]: member["in_flight"] for member in fleet.describe()}


# --- growing ---


def test_newcomers_get_names_of_their_own_and_work():
    async def use(world: World, fleet: Fleet) -> None:
        fleet.resize(4)
        await until(lambda: len(fleet.serving()) == 4)
        calls = await begun(world, fleet, range(8))
        names = Counter(name for name, *_ in await asyncio.gather(*calls))
        assert names == {f"rollout-{i}": 2 for i in range(4)}
        fleet.resize(2)
        await until(lambda: len(states(fleet)) == 2)
        fleet.resize(3)
        await until(lambda: len(fleet.serving()) == 3)
        assert set(fleet.serving()) == {"rollout-0", "rollout-1", "rollout-4"}

    with_fleet(use)


def test_a_newcomer_serves_only_when_it_has_caught_up():
    async def use(world: World, fleet: Fleet) -> None:
        async with fleet.weights:
            await world.publish(fleet, 3)
        world.may_catch_up.clear()
        fleet.resize(3)
        await world.catching_up.wait()
        assert states(fleet)["rollout-2"] == "stale"
        results = await asyncio.gather(*await begun(world, fleet, range(6)))
        assert {name for name, *_ in results} == {"rollout-0", "rollout-1"}
        world.may_catch_up.set()
        await until(lambda: len(fleet.serving()) == 3)
        assert [member["version"] for member in fleet.describe()] == [3, 3, 3]
        results = await asyncio.gather(*await begun(world, fleet, range(3)))
        assert {version for *_, version in results} == {3}

    with_fleet(use)


def test_a_resize_during_a_publish_waits_for_nothing_and_its_newcomer_gets_the_new_version():
    async def use(world: World, fleet: Fleet) -> None:
        async with fleet.weights:
            fleet.resize(3)
            await until(lambda: states(fleet).get("rollout-2") == "stale")
            assert await world.publish(fleet, 5) == {"rollout-0", "rollout-1"}
            assert states(fleet)["rollout-2"] == "stale"
        await until(lambda: len(fleet.serving()) == 3)
        assert world.named("rollout-2").version == 5

    with_fleet(use)


def test_a_newcomer_that_cannot_start_is_given_up_and_the_run_goes_on(caplog):
    async def use(world: World, fleet: Fleet) -> None:
        world.cannot_start = {"rollout-3"}
        fleet.resize(4)
        await until(lambda: fleet.target == 3)
        await until(lambda: len(fleet.serving()) == 3)
        assert set(states(fleet)) == {"rollout-0", "rollout-1", "rollout-2"}
        assert (await fleet.call("work", 1))[1] == 1

    world = with_fleet(use, restarts=0)
    assert world.killed.count("rollout-3") == 3
    assert "rollout-3 is given up after 3 starts, and 3 actors go on without it" in caplog.text


# --- restarts ---


def test_losses_are_counted_from_one_trained_iteration_to_the_next():
    async def use(world: World, fleet: Fleet) -> None:
        for _ in range(4):
            fleet.replace("rollout-0", "died of it")
            await until(lambda: len(fleet.serving()) == 2)
            fleet.note_progress()
        assert fleet.restarts == 4
        fleet.replace("rollout-0", "the first")
        fleet.replace("rollout-1", "the second")
        await until(lambda: len(fleet.serving()) == 2)
        fleet.replace("rollout-1", "the third")
        with pytest.raises(RunError, match=r"used up its 2 restarts .* first lost was .*the first"):
            await fleet.call("work", 1)

    # Each of two members may be lost once, whatever the limit is.
    with_fleet(use, restarts=1)


def test_a_fleet_without_restarts_ends_with_its_first_loss():
    async def use(world: World, fleet: Fleet) -> None:
        fleet.replace("rollout-0", "dead")
        with pytest.raises(RunError, match="used up its 0 restarts"):
            await fleet.call("work", 1)

    with_fleet(use, restarts=0)


# --- leaving ---


def test_a_leaver_finishes_its_work_gets_no_more_and_is_released():
    async def use(world: World, fleet: Fleet) -> None:
        gate = asyncio.Event()
        calls = await begun(world, fleet, range(4), gate)
        fleet.resize(1)
        assert set(fleet.serving()) == {"rollout-0"}
        assert states(fleet)["rollout-1"] == "draining"
        more = await begun(world, fleet, range(4, 8), gate)
        assert in_hand(fleet) == {"rollout-0": 6, "rollout-1": 2}
        assert not world.killed
        gate.set()
        done = await asyncio.gather(*calls, *more)
        assert [item for _, item, _ in done] == list(range(8))
        assert [name for name, *_ in done[:4]] == ["rollout-0", "rollout-1"] * 2
        await until(lambda: set(states(fleet)) == {"rollout-0"})
        assert world.killed == ["rollout-1"]
        assert world.named("rollout-1").stopped
        assert set(world.ended.values()) == {1}
        assert fleet.restarts == 0

    with_fleet(use)


def test_work_that_outlasts_the_drain_is_redone_once_and_its_first_result_is_not_looked_at(caplog):
    async def use(world: World, fleet: Fleet) -> None:
        slow = asyncio.Event()
        calls = await begun(world, fleet, range(2), slow)
        victim = world.named("rollout-1")
        assert world.begun[-1] == ("rollout-1", 1)
        fleet.resize(1)
        await until(lambda: victim.dead)
        slow.set()
        assert [r[:2] for r in await asyncio.gather(*calls)] == [("rollout-0", 0), ("rollout-0", 1)]
        assert world.begun.count(("rollout-0", 1)) == 1
        assert (fleet.restarts, fleet.in_flight) == (0, 0)

    with_fleet(use, drain_deadline_s=0.05)
    assert "rollout-1 leaves: another redoes work" in caplog.text


def test_calls_that_outlast_a_drain_are_redone_at_once_although_the_leaver_waits_for_a_publish():
    async def use(world: World, fleet: Fleet) -> None:
        async with fleet.weights:
            slow = asyncio.Event()
            calls = await begun(world, fleet, range(2), slow)
            fleet.resize(1)
            await until(lambda: ("rollout-0", 1) in world.begun)
            assert states(fleet)["rollout-1"] == "draining"
            assert not world.killed
            slow.set()
            assert [item for _, item, _ in await asyncio.gather(*calls)] == [0, 1]
        await until(lambda: world.killed == ["rollout-1"])

    with_fleet(use, drain_deadline_s=0.05)


def test_a_leaver_that_dies_is_gone_and_its_work_redone():
    async def use(world: World, fleet: Fleet) -> None:
        gate = asyncio.Event()
        calls = await begun(world, fleet, range(4), gate)
        fleet.resize(1)
        world.named("rollout-1").die()
        await until(lambda: set(states(fleet)) == {"rollout-0"})
        gate.set()
        results = await asyncio.gather(*calls)
        assert [(name, item) for name, item, _ in results] == [("rollout-0", i) for i in range(4)]
        assert (fleet.restarts, len(world.actors)) == (0, 2)

    with_fleet(use)


def test_no_leaver_is_ended_while_a_transfer_may_reach_it():
    async def use(world: World, fleet: Fleet) -> None:
        async with fleet.weights:
            members = fleet.serving()
            fleet.resize(1)
            await asyncio.sleep(0)
            assert set(fleet.serving()) == {"rollout-0"}  # of the next publish
            for member in members.values():  # the one that has begun reaches all it began with
                await member.take.remote(9)
            await fleet.call_each("sleep")
            assert sorted(world.asleep) == ["rollout-0", "rollout-1"]
            assert not world.killed
        await until(lambda: world.killed == ["rollout-1"])

    with_fleet(use)


def test_a_leaver_that_a_publish_did_not_reach_is_ended_and_its_work_redone():
    async def use(world: World, fleet: Fleet) -> None:
        gate = asyncio.Event()
        calls = await begun(world, fleet, range(2), gate)
        async with fleet.weights:
            fleet.resize(1)
            fleet.replace("rollout-1", "silent")
            assert states(fleet) == {"rollout-0": "serving"}
            fleet.replace("rollout-1", "silent")  # it has left
        gate.set()
        results = await asyncio.gather(*calls)
        assert [(name, item) for name, item, _ in results] == [("rollout-0", 0), ("rollout-0", 1)]

    with_fleet(use)


def test_a_newcomer_told_to_leave_while_it_catches_up_never_serves():
    async def use(world: World, fleet: Fleet) -> None:
        world.may_catch_up.clear()
        fleet.resize(3)
        await world.catching_up.wait()
        fleet.resize(2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not world.killed  # a transfer to it is under way
        world.may_catch_up.set()
        await until(lambda: world.killed == ["rollout-2"])
        await until(lambda: len(states(fleet)) == 2)
        assert "rollout-2" not in {name for name, _ in world.begun}

    with_fleet(use)


def test_those_not_yet_serving_leave_first_then_the_least_loaded_then_the_youngest():
    async def use(world: World, fleet: Fleet) -> None:
        gate, short = asyncio.Event(), asyncio.Event()
        calls = await begun(world, fleet, [0], short)
        calls += await begun(world, fleet, range(1, 4), gate)
        world.may_start.clear()
        fleet.resize(5)
        await until(lambda: len(world.actors) == 5)
        fleet.resize(4)
        assert set(fleet.serving()) == {f"rollout-{i}" for i in range(4)}
        await until(lambda: world.killed == ["rollout-4"])
        short.set()
        await calls[0]
        assert in_hand(fleet)["rollout-0"] == 0
        fleet.resize(3)
        assert set(fleet.serving()) == {"rollout-1", "rollout-2", "rollout-3"}
        fleet.resize(2)
        assert set(fleet.serving()) == {"rollout-1", "rollout-2"}
        gate.set()
        await asyncio.gather(*calls)

    with_fleet(use, replicas=4)


def test_a_member_without_a_place_leaves_before_one_that_starts():
    async def use(world: World, fleet: Fleet) -> None:
        world.may_start.clear()
        world.lacks = {"rollout-2": "no GPU"}
        fleet.resize(4)
        await until(lambda: "rollout-2" in fleet.unplaced)
        fleet.resize(3)
        assert set(states(fleet)) - {"rollout-2"} == {"rollout-0", "rollout-1", "rollout-3"}
        await until(lambda: world.killed == ["rollout-2"])
        assert fleet.unplaced == {}

    with_fleet(use, placement_deadline_s=0.02)


# --- targets ---


def test_no_fleet_is_scaled_to_nothing():
    async def use(world: World, fleet: Fleet) -> None:
        with pytest.raises(UserError, match="fleet rollout cannot be scaled to 0: it needs at"):
            fleet.resize(0)
        assert len(fleet.serving()) == 2

    with_fleet(use)


def test_contradicting_resizes_converge_to_the_last():
    async def use(world: World, fleet: Fleet) -> None:
        for target in (5, 1, 4, 2, 6, 3):
            fleet.resize(target)
        await until(lambda: len(fleet.serving()) == 3 and len(states(fleet)) == 3)
        fleet.resize(1)
        await asyncio.sleep(0)
        fleet.resize(4)
        await until(lambda: len(fleet.serving()) == 4 and len(states(fleet)) == 4)

    with_fleet(use)


def test_a_resize_before_the_start_is_over_counts_from_then():
    async def run() -> None:
        world = World()
        fleet = world.fleet(2)
        world.may_start.clear()
        starting = asyncio.ensure_future(fleet.start())
        await until(lambda: len(world.actors) == 2)
        fleet.resize(3)
        fleet.resize(1)
        assert len(world.actors) == 2
        world.may_start.set()
        await starting
        await until(lambda: set(states(fleet)) == {"rollout-0"})
        await fleet.stop()
        with pytest.raises(RunError, match="fleet rollout is stopped"):
            fleet.resize(2)

    asyncio.run(run())


def test_a_death_during_a_resize_changes_neither_target_nor_work():
    async def use(world: World, fleet: Fleet) -> None:
        gate = asyncio.Event()
        calls = await begun(world, fleet, range(4), gate)
        world.may_start.clear()
        fleet.resize(3)
        world.named("rollout-0").die()
        await until(lambda: states(fleet)["rollout-0"] == "starting")
        fleet.resize(2)
        # Of the two that start, the one that has served before and the newcomer, one leaves.
        await until(lambda: len(states(fleet)) == 2)
        world.may_start.set()
        gate.set()
        results = await asyncio.gather(*calls)
        assert [item for _, item, _ in results] == list(range(4))
        await until(lambda: len(fleet.serving()) == 2)
        assert fleet.target == 2

    with_fleet(use)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_call_is_answered_once_and_the_last_target_is_met(seed):
    chance = random.Random(seed)
    answers: Counter[int] = Counter()

    async def caller(fleet: Fleet, item: int) -> None:
        _, answered, _ = await fleet.call("work", item)
        assert answered == item
        answers[item] += 1

    async def disturb(world: World, fleet: Fleet) -> None:
        kind = chance.choice(["resize", "resize", "kill", "publish"])
        if kind == "resize":
            fleet.resize(chance.randint(1, 6))
        elif kind == "kill":
            chance.choice(world.actors).die()
        else:
            async with fleet.weights:
                await world.publish(fleet, world.version + 1)

    async def use(world: World, fleet: Fleet) -> None:
        calls = []
        for item in range(300):
            calls.append(asyncio.ensure_future(caller(fleet, item)))
            if chance.random() < 0.3:
                await disturb(world, fleet)
            for _ in range(chance.randint(0, 4)):
                await asyncio.sleep(0)
        await asyncio.gather(*calls)
        fleet.resize(3)
        # A member that died idle is found by a call.
        await until_found(world, fleet)
        assert len(fleet.serving()) == fleet.target == len(states(fleet)) == 3
        versions = {actor.version for actor in fleet.serving().values()}
        assert versions == {world.version}
        assert fleet.in_flight == fleet.waiting == 0

    async def until_found(world: World, fleet: Fleet) -> None:
        async with asyncio.timeout(20):
            while (
                len(states(fleet)) != 3
                or any(a.dead for a in fleet.serving().values())
                or (len(fleet.serving()) < 3)
            ):
                await fleet.call_each("describe")
                await asyncio.sleep(0)

    world = with_fleet(use, restarts=1000, drain_deadline_s=5)
    assert answers == Counter(range(300))
    assert all(actor.dead for actor in world.actors)
    numbers = [int(a.name.removeprefix("rollout-")) for a in world.actors]
    assert [n for i, n in enumerate(numbers) if n not in numbers[:i]] == sorted(set(numbers))
