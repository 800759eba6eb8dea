"""One life of a run, before its game: what the outside sees of it, without engines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from cluster.faults import RunError
from cluster.game import Pending
from cluster.metrics import VERSION
from cluster.playing import Playing
from cluster.scraping import Scraped
from cluster.status import status_text
from configs.errors import UserError
from configs.fleets import AutoscaleConfig
from configs.load import load
from tests.conftest import ROOT


class World:
    """A run's parts that do nothing but note which version was shown while they worked."""

    def __init__(self, run_dir: Path) -> None:
        self.shown: dict[str, float | None] = {}
        self.playing: Playing | None = None
        self.said: list[dict[str, Any]] = []
        learner = SimpleNamespace(describe=self._describe, unplaced=None)
        policy = SimpleNamespace(weights_move=self._weights_move, publish=self._publish)
        self.wired: Any = SimpleNamespace(
            fleets={}, start=self._start, learner=learner, policy=policy, game=lambda *_: object()
        )
        self.config = load(ROOT / "configs" / "quickstart.yaml", [f"run_dir={run_dir}"])

    async def _start(self) -> None:
        self._note("start")
        if self.playing is not None:
            self.said.append(await self.playing._status())
            self.wired.learner.unplaced = "the learner has no place: it asks for 1 GPU"
            self.said.append(await self.playing._status())
            self.wired.learner.unplaced = None

    async def _describe(self) -> list[dict[str, Any]]:
        return []

    @contextlib.asynccontextmanager
    async def _weights_move(self) -> AsyncIterator[None]:
        yield

    async def _publish(self, version: int) -> None:
        self._note("publish")

    def _note(self, when: str) -> None:
        self.shown[when] = REGISTRY.get_sample_value("selfplay_policy_version")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def playing(world):
    scraped = Scraped(world.config)
    playing = Playing(
        world.config, world.wired, "identity", {"base_model": 0.0}, 0.0, {}, (), scraped
    )
    yield playing
    playing.close()
    scraped.close()


def test_a_life_shows_the_version_that_it_has_published(world, playing):
    """Not what the life before it had come to, which no engine holds any more."""
    VERSION.set(57)
    playing._begins = 50, Pending(), None
    asyncio.run(playing._set_up())
    world._note("after")
    assert world.shown == {"start": 0, "publish": 0, "after": 50}


def test_a_run_that_starts_says_what_it_awaits(world, playing):
    playing._begins = 50, Pending(), None
    world.playing = playing
    asyncio.run(playing._set_up())
    first, second = world.said
    assert first["starting"]
    assert (first["iteration"], first["awaited"]) == (50, "its actors, which start")
    assert second["awaited"] == "the learner has no place: it asks for 1 GPU"
    assert "waits for   its actors, which start" in status_text(first)


def test_the_fleet_of_a_part_goes_by_the_parts_name_too(world, playing, monkeypatch):
    resized = []
    bounds = SimpleNamespace(autoscale=None)
    world.wired.fleets["reward_taste"] = SimpleNamespace(config=bounds, resize=resized.append)

    async def status() -> dict[str, Any]:
        return {}

    monkeypatch.setattr(playing, "_status", status)
    asyncio.run(playing._scale({"taste": 3}))
    asyncio.run(playing._scale({"reward_taste": 2}))
    assert resized == [3, 2]
    with pytest.raises(UserError, match="there is no fleet tast; there are reward_taste"):
        asyncio.run(playing._scale({"tast": 3}))


def test_what_ended_a_run_comes_before_what_could_not_be_saved(world, playing, monkeypatch, caplog):
    async def nothing(*_: Any) -> Any: ...

    async def ends(*_: Any) -> None:
        raise RunError("the first cause")

    async def fails(*_: Any) -> None:
        raise UserError("no room on the disk")

    monkeypatch.setattr(playing, "_set_up", nothing)
    monkeypatch.setattr(playing, "_measured", nothing)
    monkeypatch.setattr(playing, "_iterate", ends)
    monkeypatch.setattr(playing, "_save", fails)
    with pytest.raises(RunError, match="the first cause"):
        asyncio.run(playing.play())
    assert "nothing could be saved: no room on the disk" in caplog.text


def test_a_size_that_the_autoscaler_would_undo_is_refused(world, playing):
    bounds = AutoscaleConfig(min=2, max=4, target=8)
    resized = []
    fleet = SimpleNamespace(config=SimpleNamespace(autoscale=bounds), resize=resized.append)
    world.wired.fleets["judge"] = fleet
    for size in (1, 5):
        with pytest.raises(UserError, match=f"judge chooses .* 2 and 4 .*, and {size} would"):
            asyncio.run(playing._scale({"judge": size}))
    assert not resized
