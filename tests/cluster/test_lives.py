"""The lives of a run: what begins another, and what ends it. The lives themselves are played."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from cluster import lives
from cluster.faults import RunError
from cluster.initial import InitialModel
from cluster.scraping import Scraped
from configs.errors import UserError
from configs.load import load
from learner.errors import LearnerError
from tests.conftest import ROOT

PRESET = ROOT / "configs" / "quickstart.yaml"


class World:
    """What each life comes to: an error at its start, an error in its game, or its end."""

    def __init__(self, monkeypatch, tmp_path, *script: tuple[str, Exception | None]) -> None:
        self.script = list(script)
        self.begun = 0
        self.found_at: list[str] = []
        """The address of the discovery in each life."""
        self.checkpoints = iter(range(100))
        self.learner_is_lost = False
        self.config = load(PRESET, [f"run_dir={tmp_path}", "faults.learner_losses=3"])
        monkeypatch.setattr(lives, "wire", lambda *_: self._wired())
        monkeypatch.setattr(lives, "Playing", self._playing)
        monkeypatch.setattr(lives, "connect", lambda: None)
        context = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address="x"))
        monkeypatch.setattr(lives, "ray", SimpleNamespace(shutdown=lambda: None, **vars(context)))

    def play(self) -> None:
        model = InitialModel(path="model", revision=None, identity="identity")
        run = lives.Lives(self.config, model, lambda *_: None, {}, 0.0)
        asyncio.run(run.live())

    def _playing(self, *given: object) -> Life:
        *_, scraped = given
        assert isinstance(scraped, Scraped)
        self.found_at.append(scraped.follow({}))
        with urllib.request.urlopen(self.found_at[-1], timeout=5) as answer:
            assert answer.status == 200
        return Life(self, *self.script.pop(0))

    def _wired(self) -> SimpleNamespace:
        async def check(fault: BaseException) -> None:
            if self.learner_is_lost:
                raise LearnerError("learner: ranks [0] are lost") from fault

        return SimpleNamespace(learner=SimpleNamespace(check=check), fleets={}, stop=_nothing)


class Life:
    """A `Playing` that comes to what it is told."""

    def __init__(self, world: World, when: str, error: Exception | None) -> None:
        self.world, self.when, self.error = world, when, error
        self.wired = world._wired()
        self.control = SimpleNamespace(start=lambda: None, stop=_nothing, name="x")
        self.store = SimpleNamespace(latest=lambda: "no checkpoint between them")
        self.game, self.iteration, self.is_stopping = None, 0, False

    def look_back(self) -> None:
        pass

    async def play(self) -> None:
        self.world.begun += 1
        if self.when == "game":
            self.game = object()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        pass


async def _nothing() -> None:
    pass


LOST = LearnerError("learner: step 3: a rank is lost")


def test_a_lost_learner_begins_another_life(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, ("game", LOST), ("game", None))
    world.play()
    assert world.begun == 2


def test_prometheus_finds_every_life_at_the_address_of_the_first(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, ("game", LOST), ("game", LOST), ("game", None))
    world.play()
    assert len(world.found_at) == 3
    (url,) = set(world.found_at)
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_losses_without_a_checkpoint_between_them_end_the_run(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, *[("game", LOST)] * 3)
    with pytest.raises(RunError, match=r"3 losses of the learner .*faults.learner_losses 3"):
        world.play()


@pytest.mark.parametrize("error", [RunError("fleet rollout: used up"), KeyError("a fault of ours")])
def test_what_a_lost_learner_has_led_to_is_its_loss(monkeypatch, tmp_path, error):
    world = World(monkeypatch, tmp_path, ("game", error), ("game", None))
    world.learner_is_lost = True
    world.play()
    assert world.begun == 2
    world = World(monkeypatch, tmp_path, ("game", error))
    with pytest.raises(type(error)):
        world.play()


@pytest.mark.parametrize(
    "error", [RunError("an actor could not start"), UserError("no place within 900 s"), LOST]
)
def test_a_start_after_a_loss_is_tried_again_and_the_first_start_is_not(
    monkeypatch, tmp_path, error
):
    world = World(monkeypatch, tmp_path, ("game", LOST), ("start", error), ("game", None))
    world.play()
    assert world.begun == 3
    world = World(monkeypatch, tmp_path, ("start", error))
    with pytest.raises(type(error), match=str(error)):
        world.play()


def test_a_users_mistake_in_a_game_ends_the_run(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, ("game", UserError("the disk is full")))
    world.learner_is_lost = True
    with pytest.raises(UserError, match="disk"):
        world.play()


@pytest.mark.parametrize("kind", [ObjectStoreFullError, OutOfDiskError])
def test_a_full_object_store_ends_the_run_in_one_sentence(ray_session, monkeypatch, tmp_path, kind):
    @ray.remote(num_cpus=0, max_retries=0)
    def put() -> None:
        raise kind("Failed to put 3 bytes")

    with pytest.raises(kind) as full:
        ray.get(put.remote())
    world = World(monkeypatch, tmp_path, ("game", full.value))
    with pytest.raises(RunError, match=f"store on a node is full.*resume {tmp_path}") as ended:
        world.play()
    assert ended.value.__cause__ is None, "its traceback would be printed"
