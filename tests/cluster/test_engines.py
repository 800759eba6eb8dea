"""Engines of evaluations: each model has its own, and none is lost for having much to do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from actors.records import NO_ROOM, Completion, GenerationRequest, Sampling
from cluster.engines import Answering, Engines, Scoring, asked
from cluster.evaluated import Evaluated
from cluster.faults import RunError
from cluster.fleet import Fleet
from cluster.playing import Playing
from configs.fleets import EngineConfig, RolloutConfig
from configs.rewards import PreferencePart
from evaluation.config import BenchmarkConfig
from tests.cluster.fakes import make_config
from tests.cluster.local_actors import Actor, World, with_new_fleet


def request(length: int = 3) -> GenerationRequest:
    return GenerationRequest(np.zeros(length, np.int32), Sampling())


def evaluated(identity: str, **rollout: object) -> Evaluated[BenchmarkConfig]:
    config = BenchmarkConfig(rollout=RolloutConfig.model_validate(rollout))
    return Evaluated("lsp@7", identity, f"/{identity}", None, config, Path("unused"))


class FakeFleet:
    """Says who it is; remembers all that were made and the most calls at once."""

    made: list[FakeFleet]

    def __init__(self, *_: object) -> None:
        self.number, self.now, self.most, self.ended = len(self.made), 0, 0, False
        self.made.append(self)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.ended = True

    async def call(self, method: str, *args) -> object:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        if method == "score":
            return np.zeros(2)
        ids = np.zeros(1, np.int32)
        return [Completion(ids, ids, str(self.number), "stop", 0, 0, 0) for _ in args[0]]


@pytest.fixture
def fleets(monkeypatch):
    monkeypatch.setattr(FakeFleet, "made", [], raising=False)
    monkeypatch.setattr("cluster.engines.Fleet", FakeFleet)
    monkeypatch.setattr("cluster.engines.connect", lambda: None)
    return FakeFleet.made


def test_two_runs_of_one_name_are_two_models(fleets):
    async def texts() -> list[str]:
        engines = Engines()
        models = [evaluated("a"), evaluated("b"), evaluated("b"), evaluated("b", context=64)]
        made = [await Answering(engines, model).generate([request()]) for model in models]
        await engines.stop()
        return [completion.text for (completion,) in made]

    assert asyncio.run(texts()) == ["0", "1", "1", "2"]
    assert all(fleet.ended for fleet in fleets)


def test_a_model_is_asked_for_what_fits_and_for_no_more_than_it_decodes_at_once(fleets):
    async def reasons() -> list[str]:
        model = evaluated("a", context=16, max_sequences=16, replicas=2)
        lengths = [3] * 99 + [16]
        made = await asked(Engines(), model).generate([request(n) for n in lengths])
        return [completion.finish_reason for completion in made]

    assert asyncio.run(reasons()) == ["stop"] * 99 + [NO_ROOM]
    assert fleets[0].most == 4, "calls of 8"


def test_a_reward_model_is_asked_for_no_more_than_it_reads_at_once(fleets):
    part = PreferencePart(name="p", model="m", fleet=EngineConfig(max_sequences=6, replicas=2))

    async def judge() -> None:
        scoring = Scoring(Engines(), part, BenchmarkConfig())
        await asyncio.gather(*(scoring.score("q", ["a", "b"]) for _ in range(50)))

    asyncio.run(judge())
    assert fleets[0].most == 6


SEQUENCES = 16


class Slow(Actor):
    """An engine that decodes `SEQUENCES` requests at once; others wait inside."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.room = asyncio.Semaphore(SEQUENCES)

    async def _generate(self, requests: list[GenerationRequest]) -> list[Completion]:
        async def one(request: GenerationRequest) -> Completion:
            async with self.room:
                await asyncio.sleep(0.05)
            ids = request.prompt_token_ids
            return Completion(ids, ids, "", "stop", 0, 0, 0)

        return await asyncio.gather(*map(one, requests))


def test_more_work_than_one_deadline_holds_does_not_end_a_healthy_engine(monkeypatch):
    """640 requests of 0.05 s, 16 at once, take 2 s; a call may take 0.6 s."""
    monkeypatch.setattr(World, "_spawn", lambda world, name: Slow(world, name))
    examinee: list[object] = []

    async def use(_: World, fleet: Fleet) -> None:
        await fleet.start()
        policy = SimpleNamespace(
            fleet=fleet, generate=lambda requests: fleet.call("generate", requests)
        )
        config = make_config(rollout={"max_sequences": SEQUENCES})
        playing = object.__new__(Playing)
        playing.config, playing.wired = config, SimpleNamespace(policy=policy)
        made = await playing._examinee().generate([request()] * 640)
        assert (len(made), fleet.restarts) == (640, 0)
        examinee.append(playing)
        parts = [[request()] * 8] * 80
        with pytest.raises(RunError, match="used up its 0 restarts"):
            await asyncio.gather(*(policy.generate(part) for part in parts))

    with_new_fleet(use, replicas=1, deadline_s=0.6, restarts=0)
    assert examinee
