"""A run has one driver at a time, wherever it was started, and a dead one blocks nothing."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.claim import DRIVER, claimed, living_driver, stop_driver
from cluster.rundir import open_run
from configs.errors import UserError
from configs.load import load

HOLD = """
import signal, sys
from pathlib import Path
from cluster.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    open_run(load(Path("configs/quickstart.yaml"), [f"run_dir={tmp_path / 'run'}"]))
    return tmp_path / "run"


def holder(run_dir: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path):
    refused = pytest.raises(UserError, match=f"is being trained by process {os.getpid()}")
    with claimed(tmp_path), refused, claimed(tmp_path):
        pytest.fail("two drivers")
    assert living_driver(tmp_path) is None


def test_a_killed_drivers_claim_counts_for_nothing(run_dir: Path):
    process = holder(run_dir)
    with pytest.raises(UserError, match=f"process {process.pid}"), claimed(run_dir):
        pytest.fail("two drivers")
    process.kill()
    process.wait()
    assert json.loads((run_dir / DRIVER).read_text())["pid"] == process.pid
    assert living_driver(run_dir) is None
    with claimed(run_dir):
        driver = living_driver(run_dir)
        assert driver is not None
        assert driver.pid == os.getpid()


def test_a_driver_that_died_elsewhere_blocks_nothing(run_dir: Path):
    (run_dir / DRIVER).write_text(json.dumps({"pid": 7, "host": "node-7"}))
    with pytest.raises(UserError, match="is not running"):
        stop_driver(run_dir)
    with claimed(run_dir):
        pass


def test_a_driver_elsewhere_is_named_and_nothing_is_killed_here(run_dir: Path):
    with (run_dir / DRIVER).open("w") as elsewhere:
        fcntl.flock(elsewhere, fcntl.LOCK_EX)
        elsewhere.write(json.dumps({"pid": os.getpid(), "host": "node-7"}))
        elsewhere.flush()
        with pytest.raises(UserError, match="is driven from node-7"):
            stop_driver(run_dir)


@pytest.mark.parametrize("said", ["", "nobody", '{"pid": -1, "host": "here"}', '{"pid": 1}'])
def test_a_holder_that_does_not_say_who_it_is_is_not_guessed(run_dir: Path, said: str):
    with (run_dir / DRIVER).open("w") as unnamed:
        fcntl.flock(unnamed, fcntl.LOCK_EX)
        unnamed.write(said)
        unnamed.flush()
        with pytest.raises(UserError, match="that it does not name"):
            stop_driver(run_dir)


def test_stop_waits_until_the_driver_has_ended(run_dir: Path):
    process = holder(run_dir)
    stop_driver(run_dir)
    assert process.wait() == -signal.SIGTERM
    assert living_driver(run_dir) is None


def test_stopping_what_does_not_run_says_so(run_dir: Path):
    with pytest.raises(UserError, match="is not running"):
        stop_driver(run_dir)
    with pytest.raises(UserError, match="is no run directory"):
        stop_driver(run_dir.parent)


def test_two_who_look_at_once_do_not_take_each_other_for_the_driver(run_dir: Path):
    (run_dir / DRIVER).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    with (run_dir / DRIVER).open() as another_look:
        fcntl.flock(another_look, fcntl.LOCK_SH)
        with pytest.raises(UserError, match="is not running"):
            stop_driver(run_dir)
