"""What the tests share: the environment of CPU engines, small models, one Ray session."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
"""Published data, which is not part of the project."""

WHOLE_RUNS = ("test_run.py", "test_walkthrough.py")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the published data; skips where the machine has none."""
    if not DATA.is_dir():
        pytest.skip("needs the published data in ../shared/data")
    return DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A factory of small random causal models, one per kind of embedding (tied or not)."""
    from tests.models import save_causal_model

    made: dict[bool, Path] = {}

    def make(tied: bool) -> Path:
        if tied not in made:
            made[tied] = save_causal_model(tmp_path_factory.mktemp("model"), tied=tied)
        return made[tied]

    return make


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random one-label sequence classifier."""
    from tests.models import save_reward_model

    return save_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need actors; its CPUs are numbers, whatever there is."""
    import ray

    from cluster.token import make_token

    make_token()
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def session_survives(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that ends the session's Ray fails: others would play on a machine of their own."""
    ray = sys.modules.get("ray")
    alive = ray is not None and ray.is_initialized()
    yield
    if ray is not None and alive and not ray.is_initialized():
        pytest.fail(f"{request.node.nodeid} ended the session's Ray")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first: the last file would keep one worker busy while the others have nothing."""
    items.sort(key=lambda item: item.path.name not in WHOLE_RUNS)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let CI count a skip for want of a Debian package as a failure."""
    parser.addoption("--fail-on-missing-package", action="store_true")


@pytest.fixture
def debian_program(request: pytest.FixtureRequest) -> Callable[[str, str], str]:
    """Path of a program out of a Debian package; skips, naming the package, where it is missing."""

    def find(program: str, package: str) -> str:
        found = shutil.which(program)
        if found is None:
            sentence = f"needs {program}: apt-get install {package}"
            if request.config.getoption("--fail-on-missing-package"):
                pytest.fail(sentence)
            pytest.skip(sentence)
        return found

    return find
