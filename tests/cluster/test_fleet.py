"""Fleets on real Ray: dead and hung members, requeued work, and weights that are never stale."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter

import pytest
import ray

from actors.member import EngineDiedError
from cluster.faults import RunError
from cluster.fleet import Fleet
from configs.errors import UserError
from configs.fleets import FleetConfig
from tests.cluster.local_actors import until, use_fleet

pytestmark = pytest.mark.usefixtures("ray_session")


class Worker:
    """An actor that does what its calls say."""

    def __init__(self, name: str, broken: str = "") -> None:
        if broken == "model":
            raise UserError("model.path /nowhere is no model: name one")
        if broken == "slow":
            time.sleep(60)
        self.name = name
        self.version = 0

    async def describe(self) -> dict:
        return {"name": self.name, "pid": os.getpid()}

    async def work(self, item: int, seconds: float = 0.0) -> tuple[str, int]:
        await asyncio.sleep(seconds)
        return self.name, item

    async def die_first(self, marker: str) -> str:
        """Kill the process on the first call of all, answer on the next."""
        if not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(1)
        return self.name

    async def hang_first(self, marker: str) -> str:
        if not os.path.exists(marker):
            open(marker, "w").close()
            await asyncio.sleep(600)
        return self.name

    async def suffer(self, blow: int = signal.SIGKILL) -> None:
        os.kill(os.getpid(), blow)

    async def refuse(self, kind: str) -> None:
        raise {"user": UserError("no such key"), "timeout": TimeoutError("the inner one")}[kind]

    async def serve_with(self, marker: str) -> str:
        """Be without an engine on the first call of all, answer on the next."""
        if not os.path.exists(marker):
            open(marker, "w").close()
            raise EngineDiedError("the rollout engine failed: no blocks left")
        return self.name

    async def take(self, version: int) -> None:
        self.version = version

    async def held(self) -> int:
        return self.version

    async def stop(self) -> None: ...


def make_fleet(replicas: int = 2, catch_up=None, broken: str = "", **config: object) -> Fleet:
    settings = {"replicas": replicas, "deadline_s": 30, "start_deadline_s": 60} | config
    actor = ray.remote(Worker).options(num_cpus=0)
    return Fleet(
        "rollout",
        FleetConfig.model_validate(settings),
        lambda name: actor.remote(name, broken),
        catch_up,
    )


def states(fleet: Fleet) -> Counter:
    return Counter(member["state"] for member in fleet.describe())


def test_work_is_spread_by_load_and_every_result_is_the_callers():
    async def use(fleet: Fleet) -> None:
        results = await asyncio.gather(*(fleet.call("work", i, 0.2) for i in range(8)))
        assert [item for _, item in results] == list(range(8))
        assert Counter(name for name, _ in results) == {"rollout-0": 4, "rollout-1": 4}
        assert {member["in_flight"] for member in fleet.describe()} == {0}
        assert all("pid" in member for member in fleet.describe())

    use_fleet(make_fleet(), use)


def test_a_member_killed_in_mid_call_is_restarted_and_its_work_redone():
    async def use(fleet: Fleet) -> None:
        calls = [asyncio.ensure_future(fleet.call("work", i, 1.0)) for i in range(6)]
        await asyncio.sleep(0.3)
        victim = fleet.describe()[0]["pid"]
        os.kill(victim, 9)
        results = await asyncio.gather(*calls)
        assert sorted(item for _, item in results) == list(range(6))
        # Every other call was given to the one that lives.
        assert {"rollout-1"} in ({n for n, _ in results[::2]}, {n for n, _ in results[1::2]})
        await until(lambda: len(fleet.serving()) == 2)
        assert fleet.restarts == 1
        assert fleet.describe()[0]["pid"] != victim
        assert fleet.describe()[0]["restarts"] == 1

    use_fleet(make_fleet(), use)


def test_the_only_member_dies_and_the_call_waits_for_its_restart(tmp_path):
    async def use(fleet: Fleet) -> None:
        assert await fleet.call("die_first", str(tmp_path / "died")) == "rollout-0"
        assert fleet.restarts == 1

    use_fleet(make_fleet(replicas=1), use)


def test_a_hung_member_is_killed_at_the_deadline_and_its_work_redone(tmp_path):
    async def use(fleet: Fleet) -> None:
        hung = {member["name"]: member["pid"] for member in fleet.describe()}
        answered = await fleet.call("hang_first", str(tmp_path / "hung"))
        (lost,) = hung.keys() - {answered}
        await until(lambda: not os.path.exists(f"/proc/{hung[lost]}"))

    use_fleet(make_fleet(deadline_s=1.5), use)


@pytest.mark.parametrize("blow", [signal.SIGSTOP, signal.SIGKILL])
def test_an_idle_member_that_is_silent_is_replaced_before_anybody_calls_it(blow, caplog):
    async def use(fleet: Fleet) -> None:
        victim = fleet.describe()[0]["pid"]
        os.kill(victim, blow)
        await until(lambda: fleet.restarts == 1 and len(fleet.serving()) == 2)
        await until(lambda: not os.path.exists(f"/proc/{victim}"))
        assert fleet.describe()[0]["pid"] != victim

    use_fleet(make_fleet(silence_s=2), use)
    assert "rollout-0 is lost: heartbeat: " in caplog.text


def test_a_living_member_without_its_engine_is_replaced(tmp_path, caplog):
    async def use(fleet: Fleet) -> None:
        before = fleet.describe()[0]["pid"]
        assert await fleet.call("serve_with", str(tmp_path / "failed")) == "rollout-0"
        assert fleet.describe()[0]["pid"] != before
        assert fleet.restarts == 1

    use_fleet(make_fleet(replicas=1), use)
    assert "rollout-0 is lost: serve_with: the rollout engine failed: no blocks left" in caplog.text


@pytest.mark.parametrize(("kind", "error"), [("user", UserError), ("timeout", TimeoutError)])
def test_the_methods_own_error_comes_as_it_was_raised_and_is_not_tried_again(kind, error):
    async def use(fleet: Fleet) -> None:
        with pytest.raises(error) as caught:
            await fleet.call("refuse", kind)
        assert type(caught.value) is error
        assert fleet.restarts == 0
        assert states(fleet) == {"serving": 1}

    use_fleet(make_fleet(replicas=1), use)


def test_used_up_restarts_name_the_fleet_and_the_first_cause():
    async def use(fleet: Fleet) -> None:
        with pytest.raises(
            RunError, match=r"fleet rollout has used up its 1 restarts.*: (suffer|heartbeat): "
        ):
            await fleet.call("suffer")
        with pytest.raises(RunError, match="used up"):
            await fleet.call("work", 0)

    use_fleet(make_fleet(replicas=1, restarts=1), use)


def test_a_users_mistake_in_a_constructor_comes_as_a_user_error():
    with pytest.raises(UserError) as caught:
        use_fleet(make_fleet(broken="model"), lambda fleet: asyncio.sleep(0))
    assert str(caught.value) == "model.path /nowhere is no model: name one"


def test_a_start_that_takes_too_long_says_so():
    with pytest.raises(UserError, match=r"rollout: an actor did not start within 2 s"):
        use_fleet(make_fleet(broken="slow", start_deadline_s=2), lambda fleet: asyncio.sleep(0))


def test_calls_fail_and_no_process_is_left_after_stop():
    fleet = make_fleet()
    use_fleet(fleet, lambda fleet: asyncio.sleep(0))
    pids = [member["pid"] for member in fleet.describe()]
    assert states(fleet) == {"gone": 2}
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(RunError, match="fleet rollout is stopped"):
        asyncio.run(fleet.call("work", 1))


class Publisher:
    """Gives members a version, as the learner's publisher does; can be held up in a catch-up."""

    def __init__(self) -> None:
        self.version = 0
        self.may_catch_up = asyncio.Event()
        self.may_catch_up.set()
        self.catching_up = asyncio.Event()

    async def catch_up(self, members) -> dict[str, str]:
        version = self.version
        self.catching_up.set()
        await self.may_catch_up.wait()
        await asyncio.gather(*(member.take.remote(version) for member in members.values()))
        return {}

    async def publish(self, version: int, members) -> None:
        self.version = version
        await asyncio.gather(*(member.take.remote(version) for member in members.values()))


async def kill(fleet: Fleet, place: int) -> None:
    """Kill a member and let the fleet find out."""
    os.kill(fleet.describe()[place]["pid"], 9)
    restarts = fleet.restarts
    while fleet.restarts == restarts:
        await fleet.call_each("describe")
        await asyncio.sleep(0.05)


def test_a_restarted_member_serves_only_when_it_holds_the_current_weights():
    publisher = Publisher()

    async def use(fleet: Fleet) -> None:
        async with fleet.weights:
            await publisher.publish(3, fleet.serving())
        publisher.may_catch_up.clear()
        publisher.catching_up.clear()
        await kill(fleet, 0)
        await publisher.catching_up.wait()
        assert states(fleet) == {"serving": 1, "stale": 1}
        names = {(await fleet.call("work", i))[0] for i in range(4)}
        assert names == {"rollout-1"}
        publisher.may_catch_up.set()
        await until(lambda: len(fleet.serving()) == 2)
        assert {await m.held.remote() for m in fleet.serving().values()} == {3}

    use_fleet(make_fleet(catch_up=publisher.catch_up), use)


def test_a_publish_during_a_catch_up_waits_and_leaves_nobody_stale():
    publisher = Publisher()

    async def use(fleet: Fleet) -> None:
        publisher.may_catch_up.clear()
        publisher.catching_up.clear()
        await kill(fleet, 0)
        await publisher.catching_up.wait()

        async def publish() -> set[str]:
            async with fleet.weights:
                members = fleet.serving()
                await publisher.publish(7, members)
                return set(members)

        publishing = asyncio.ensure_future(publish())
        await asyncio.sleep(0.2)
        assert not publishing.done()
        publisher.may_catch_up.set()
        assert await publishing == {"rollout-0", "rollout-1"}
        assert {await m.held.remote() for m in fleet.serving().values()} == {7}

    use_fleet(make_fleet(catch_up=publisher.catch_up), use)


def test_a_member_that_comes_up_during_a_publish_catches_up_to_the_new_version():
    publisher = Publisher()

    async def use(fleet: Fleet) -> None:
        async with fleet.weights:
            await kill(fleet, 0)
            await until(lambda: states(fleet)["stale"] == 1)
            await publisher.publish(5, fleet.serving())
            assert set(fleet.serving()) == {"rollout-1"}
        await until(lambda: len(fleet.serving()) == 2)
        assert {await m.held.remote() for m in fleet.serving().values()} == {5}

    use_fleet(make_fleet(catch_up=publisher.catch_up), use)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_members_that_die_or_hang_while_they_catch_up_are_restarted_again(blow):
    deadly = False

    async def catch_up(members) -> dict[str, str]:
        nonlocal deadly
        if deadly:
            deadly = False
            await members["rollout-0"].suffer.remote(blow)
        return {}

    async def use(fleet: Fleet) -> None:
        nonlocal deadly
        deadly = True
        await kill(fleet, 0)
        await until(lambda: len(fleet.serving()) == 1)
        assert fleet.restarts == 2

    use_fleet(make_fleet(replicas=1, catch_up=catch_up, restarts=3, silence_s=2), use)


@pytest.mark.parametrize(
    "error",
    [ValueError("version 3 here and 4 there"), RuntimeError("learner: a rank is lost")],
    ids=["stale", "learner"],
)
def test_an_error_in_a_restarts_catch_up_ends_the_calls_with_its_cause(error):
    calls = 0

    async def catch_up(members) -> dict[str, str]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise error
        return {}

    async def use(fleet: Fleet) -> None:
        with pytest.raises(RunError, match=f"rollout-0 could not be restarted: {error}"):
            await asyncio.gather(kill(fleet, 0), *(fleet.call("work", 0, 5) for _ in range(2)))

    use_fleet(make_fleet(replicas=1, catch_up=catch_up), use)
