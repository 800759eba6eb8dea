"""Publishing to a real engine from a real learner; every way to be stale, planted, is caught."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.exceptions import OutOfMemoryError, OwnerDiedError, RayActorError, RayError

from actors.member import EngineDiedError, Post
from actors.rollout import RolloutActor
from configs.fleets import RolloutConfig
from configs.learner import PublishConfig
from learner.errors import LearnerError
from learner.group import LearnerGroup
from learner.publisher import ObjectStorePublisher, StaleWeightsError, VllmPublisher
from tests.learner.games import group, run_config

PROBE = np.arange(20, 36, dtype=np.int32)
CONFIG = PublishConfig(deadline_s=60, parity_tolerance=1e-3, checksum_tensors=3, buffer_mib=1)


class Method:
    """A remote method without a remote process: the call returns what has a `future()`."""

    def __init__(self, method) -> None:
        self.method = method

    def remote(self, *arguments):
        called: Future = Future()

        async def call():
            try:
                called.set_result(await self.method(*arguments))
            except (RayError, EngineDiedError) as error:
                called.set_exception(error)

        self.task = asyncio.ensure_future(call())
        return SimpleNamespace(future=lambda: called)


class Engine:
    """The calls of a rollout actor, with the weights reduced to one number."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        self.calls: list[str] = []
        self.served = self.at_version = 0

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        return Method(value) if asyncio.iscoroutinefunction(value) else value

    async def start_update(self) -> None:
        self.calls.append("start")
        if "dies" in self.faults:
            raise RayActorError()
        if "memory" in self.faults:
            raise OutOfMemoryError("killed by the memory monitor")
        if "engine" in self.faults:
            raise EngineDiedError("the rollout engine failed: no blocks left")
        if "hangs" in self.faults:
            await asyncio.sleep(60)

    async def load_update(self, info) -> None:
        self.calls.append("load")
        if "owner" in self.faults:
            raise OwnerDiedError("00", "rank 0", "load")
        self.served = info["value"] - ("old tensors" in self.faults)

    async def finish_update(self, version) -> None:
        self.calls.append(f"finish {version}")
        self.at_version = version - ("old version" in self.faults)

    async def version(self) -> int:
        if "gone" in self.faults:
            raise RayActorError()
        return self.at_version

    async def checksums(self, names):
        return {name: self.served for name in names if name != "packed"}

    async def probe(self, token_ids):
        shift = 0.5 if "broken layer" in self.faults else 0.0
        if "nan" in self.faults:
            shift = np.nan
        return np.zeros(len(token_ids) - 1, dtype=np.float32) + shift


class Weights:
    """A learner whose weights are one number, the steps it took."""

    def __init__(self) -> None:
        self.steps = 0
        self.sent: list[tuple[int, list[str]]] = []
        self.error: Exception | None = None

    async def pack_weights(self, buffer_bytes, dtype):
        return [{"value": self.steps}]

    async def checksums(self, names, dtype):
        return dict.fromkeys(names, self.steps)

    async def tensor_sizes(self):
        return {"packed": 99, "norm": 2, "embedding": 50, "bias": 1, "other": 3}

    async def probe(self, token_ids):
        return np.zeros(len(token_ids) - 1, dtype=np.float32)

    async def send_weights(self, version, members, backend):
        if self.error is not None:
            raise self.error
        self.sent.append((version, sorted(members)))
        for member in members.values():
            await asyncio.wrap_future(member.load_update.remote({"value": self.steps}).future())
            await asyncio.wrap_future(member.finish_update.remote(version).future())


def publisher(weights, **settings):
    config = CONFIG.model_copy(update=settings)
    return ObjectStorePublisher(weights, config, "float32", PROBE)


def test_the_order_of_calls_and_the_report():
    async def play():
        weights, members = Weights(), {"a": Engine(), "b": Engine()}
        weights.steps = 3
        report = await publisher(weights).publish(7, members)
        assert report.version == 7
        assert report.parity == {"a": 0.0, "b": 0.0}
        assert report.compared_tensors == 3
        assert report.bytes == 4 * (99 + 2 + 50 + 1 + 3)
        assert report.lost == {}
        for member in members.values():
            assert (member.calls, member.served) == (["start", "load", "finish 7"], 3)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("old version", r"b reports policy version 4 after version 5"),
        ("old tensors", r"b, version 5: tensor embedding has checksum 1, the learner's has 2"),
        ("broken layer", r"differ from the learner's by 0\.5000"),
        ("nan", r"differ from the learner's by nan"),
    ],
)
def test_every_planted_fault_is_caught(fault, message):
    async def play():
        weights = Weights()
        weights.steps = 2
        await publisher(weights).publish(5, {"a": Engine(), "b": Engine(fault)})

    with pytest.raises(StaleWeightsError, match=message):
        asyncio.run(play())


def test_the_largest_tensors_that_the_engine_can_report_are_compared():
    async def play():
        report = await publisher(Weights(), checksum_tensors=2).publish(1, {"a": Engine()})
        assert report.compared_tensors == 2
        none = await publisher(Weights(), checksum_tensors=0).publish(1, {"a": Engine()})
        assert none.compared_tensors == 0

    asyncio.run(play())


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("dies", "The actor "),
        ("hangs", r"b has not answered .* the start of version 1"),
        ("engine", "no blocks left"),
        ("memory", "killed by the memory monitor"),
    ],
)
def test_a_member_that_is_lost_is_left_out_and_named(fault, cause):
    async def play():
        weights = publisher(Weights(), deadline_s=0.5)
        report = await weights.publish(1, {"a": Engine(), "b": Engine(fault)})
        assert list(report.lost) == ["b"]
        assert re.search(cause, report.lost["b"])
        assert list(report.parity) == ["a"]

    asyncio.run(play())


def test_weights_whose_rank_has_died_are_the_learners_loss_and_no_members():
    async def play():
        weights = publisher(Weights())
        with pytest.raises(LearnerError, match="the rank that holds the published weights is lost"):
            await weights.publish(1, {"a": Engine(), "b": Engine("owner")})

    asyncio.run(play())


def test_a_newcomer_catches_up_without_the_learner():
    async def play():
        weights, late = Weights(), Engine()
        published = publisher(weights)
        await published.catch_up({"early": Engine()})  # nothing published: the disk is current
        await published.publish(1, {"a": Engine()})
        weights.steps = 1  # newer than what is public: a newcomer must not get this
        lost = await published.catch_up({"late": late, "dead": Engine("dies")})
        assert list(lost) == ["dead"]
        assert late.served == 0
        assert late.calls == ["start", "load", "finish 1"]

    asyncio.run(play())


@pytest.mark.parametrize(
    "error", [RayActorError(), TimeoutError("['b'] have not answered"), EngineDiedError("gone")]
)
def test_a_broken_transfer_is_the_loss_of_all_its_members(error):
    async def play():
        weights, members = Weights(), {"a": Engine(), "b": Engine()}
        published = VllmPublisher(weights, CONFIG, "float32", PROBE, "nccl")
        await published.publish(1, members)
        weights.steps, weights.error = 1, error
        report = await published.publish(2, members)
        assert list(report.lost) == ["a", "b"]
        assert (await published.publish(2, {})).lost == {}  # while all of them restart
        assert str(error) in report.lost["a"]
        weights.error = None
        fresh = Engine()
        await published.catch_up({"a": fresh})
        assert (fresh.at_version, fresh.served) == (2, 1)

    asyncio.run(play())


def test_a_member_that_died_before_a_transfer_is_left_out_of_it():
    async def play():
        weights = Weights()
        published = VllmPublisher(weights, CONFIG, "float32", PROBE, "nccl")
        report = await published.publish(1, {"a": Engine(), "b": Engine("gone")})
        assert weights.sent == [(1, ["a"])]
        assert list(report.lost) == ["b"]

    asyncio.run(play())


def test_through_vllm_newcomers_get_the_learners_weights_under_the_published_version_at_once():
    async def play():
        weights = Weights()
        published = VllmPublisher(weights, CONFIG, "float32", PROBE, "nccl")
        await published.catch_up({"early": Engine()})  # nothing published: the disk is current
        await published.publish(1, {"a": Engine()})
        late = {"late": Engine(), "later": Engine(), "dead": Engine("gone")}
        assert list(await published.catch_up(late)) == ["dead"]
        assert weights.sent == [(1, ["a"]), (1, ["late", "later"])]
        weights.error = RayActorError()
        assert list(await published.catch_up({"x": Engine(), "y": Engine()})) == ["x", "y"]

    asyncio.run(play())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_real_engine_follows_a_real_learner(ray_session, tiny_model, tied):
    path = str(tiny_model(tied))
    learner = LearnerGroup(run_config(path, queries=2, learner={"learning_rate": 0.02}), path)
    settings = RolloutConfig(
        dtype="float32", context=64, eager=True, max_sequences=4, kv_cache_gib=0.1, cpus=0
    )
    member = (
        ray.remote(RolloutActor)
        .options(num_cpus=0)
        .remote(path, settings, post=Post("a", "127.0.0.1"), transfer_backend="object_store")
    )

    async def play():
        await learner.start()
        published = publisher(learner)
        await member.init_transfer.remote({})
        for version in (1, 2, 3):
            groups = [group([1, 0], seed=version), group([0, 1], seed=10 + version)]
            before = await learner.probe(PROBE)
            await learner.step(groups, version)
            assert np.abs(await learner.probe(PROBE) - before).mean() > 0.01
            report = await published.publish(version, {"a": member})
            assert report.parity["a"] < 1e-4
            assert report.compared_tensors == 3
        # Stale weights, planted: yesterday's buffers under today's version.
        stale = list(published._buffers)
        await learner.step([group([1, 0], seed=7), group([0, 1], seed=8)], 4)
        fresh = learner.pack_weights
        learner.pack_weights = lambda *_: asyncio.sleep(0, stale)
        with pytest.raises(StaleWeightsError, match=r"a, version 4: tensor .* has checksum"):
            await published.publish(4, {"a": member})
        learner.pack_weights = fresh
        assert (await published.publish(5, {"a": member})).parity["a"] < 1e-4

    try:
        asyncio.run(play())
    finally:
        learner.stop()
        ray.kill(member)
