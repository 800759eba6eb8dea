"""A live run as others see it: status, other fleet sizes, a member killed; the games stay sound."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.audit import check_ledger
from cluster.claim import living_driver
from tests.cluster.test_run import ANSWERS, Command, model, overrides

__all__ = ["model"]

LONG = "iterations=2000"


def asked(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments], capture_output=True, text=True, check=False
    )


def status(run_dir: Path) -> dict:
    done = asked("status", str(run_dir), "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def until(run_dir: Path, reached: Callable[[dict], bool]) -> dict:
    """Ask until the rollout fleet is as it should be."""
    deadline = time.monotonic() + 120
    while not reached(fleet := status(run_dir)["fleets"]["rollout"]):
        assert time.monotonic() < deadline, fleet
    return fleet


def test_a_live_run_is_watched_scaled_and_survives_a_killed_member(model: Path, tmp_path: Path):
    run_dir = tmp_path / "live"
    train = Command("train", "configs/quickstart.yaml", *overrides(model, run_dir), LONG)
    train.until("2/2000")
    seen = status(run_dir)
    assert (seen["run"], seen["iterations"]) == (str(run_dir), 2000)
    assert seen["version"] == seen["iteration"] >= 1
    assert seen["fleets"]["rollout"]["serving"] == 1
    refused = asked("scale", str(run_dir), "rollout=2", "judge=2")
    assert refused.returncode == 2
    assert "there is no fleet judge; there are rollout, reward_solved" in refused.stderr
    refused = asked("scale", str(run_dir), "rollout=2", "reward_solved=0")
    assert refused.returncode == 2
    assert status(run_dir)["fleets"]["rollout"]["target"] == 1
    scaled = asked("scale", str(run_dir), "rollout=2")
    assert scaled.returncode == 0, scaled.stderr
    fleet = until(run_dir, lambda fleet: fleet["serving"] == 2)
    newcomer = next(one for one in fleet["members"] if one["name"] == "rollout-1")
    assert newcomer["version"] >= 1
    os.kill(newcomer["pid"], signal.SIGKILL)
    until(run_dir, lambda fleet: fleet["restarts"] == 1 and fleet["serving"] == 2)
    assert asked("scale", str(run_dir), "rollout=1").returncode == 0
    until(run_dir, lambda fleet: len(fleet["members"]) == 1)
    stop = asked("stop", str(run_dir))
    assert stop.returncode == 0, stop.stderr
    assert train.end() == 0, "".join(train.said)
    assert train.living() == []
    assert check_ledger(run_dir, answers=ANSWERS, staleness=0) == []
    assert living_driver(run_dir) is None
    gone = asked("status", str(run_dir))
    assert gone.returncode == 2
    assert f"{run_dir} is not running: selfplay resume" in gone.stderr


@pytest.mark.parametrize("command", ["status", "scale", "stop"])
def test_a_run_that_is_not_there_is_one_sentence(command: str, tmp_path: Path):
    sizes = ["rollout=2"] if command == "scale" else []
    done = asked(command, str(tmp_path), *sizes)
    assert done.returncode == 2
    assert done.stderr.startswith("selfplay: ")
    assert "Traceback" not in done.stderr
