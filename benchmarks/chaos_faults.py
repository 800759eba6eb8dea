"""The faults of `make chaos`, and the run that they strike."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.local_cluster import Head, joined
from benchmarks.proxy import Proxy
from cluster.control import ask
from configs.errors import UserError
from configs.load import RESOLVED
from configs.schema import RunConfig

END_S = 60.0
"""Seconds a driver may take to end when it is asked to."""
DEADLINE_S = 300.0
"""A run that is not well so long after a fault has not survived it."""
LOOK_EVERY_S = 2.0
NODE_AWAY_S = 5.0
SLOW_S, SLOW_FOR_S = 0.3, 10.0
DISK_WAIT_S = 120.0


class Stage:
    """A run on two nodes, whose driver is started again whenever it has ended before the run has.

    The second node finds the head through a proxy that can be slow.
    """

    def __init__(self, head: Head, config: RunConfig, chance: random.Random, log: Path) -> None:
        """`log` is where the driver prints, on another disk than the run's."""
        self.head = head
        self.log = log
        self.ends: list[int] = []
        """Exit codes of drivers that ended before their run."""
        self.chance = chance
        self.config = config
        self.proxy = Proxy(head.gcs)
        self._open = contextlib.ExitStack()
        self.second: subprocess.Popen[bytes]
        self.driver: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.join()
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.terminate()
        try:
            self.driver.wait(END_S)
        except subprocess.TimeoutExpired:
            self.driver.kill()
        self._open.close()
        self.proxy.close()

    def begin(self) -> None:
        """Start the driver, or start it again: the same command continues the run."""
        run_dir = self.config.run_dir
        path = self.log.with_suffix(".yaml")
        if (run_dir / RESOLVED).is_file():
            arguments = ["resume", str(run_dir)]
        else:
            path.write_text(json.dumps(self.config.model_dump(mode="json")))
            arguments = ["train", str(path)]
        with self.log.open("ab") as said:
            command = [sys.executable, "-m", "cluster", *arguments]
            self.driver = subprocess.Popen(command, stdout=said, stderr=said)

    def join(self) -> None:
        """Let a second node join."""
        self._open.close()
        self.second = self._open.enter_context(joined(self.head, self.proxy.address))

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes of both nodes whose command begins with `name`."""
        found = []
        for node in (self.head.pid, self.second.pid):
            for process in psutil.Process(node).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith(name):
                        found.append(process)
        return found

    def status(self) -> dict[str, Any] | None:
        """What the run says of itself; None where it does not answer."""
        try:
            return ask(str(self.config.run_dir), "status")
        except UserError:
            return None

    @property
    def ended(self) -> bool:
        """Whether all iterations are played."""
        return (self.config.run_dir / "summary.json").is_file()

    def is_well_after(self, pause_s: float) -> bool:
        """Wait until the run is well, and then `pause_s`; False where it has ended."""
        self.recovered(-1, set())
        time.sleep(pause_s)
        return not self.ended

    def recovered(self, mark: int, struck: set[int]) -> float:
        """Wait until the run is well, past iteration `mark`, without processes `struck`; seconds.

        Starts the driver again where it has ended. AssertionError where the run does not recover.
        """
        started = time.monotonic()
        while not self.ended:
            if (code := self.driver.poll()) is not None and not self.ended:
                self.ends.append(code)
                self.begin()
            status = self.status()
            if status is not None and _is_well(status, mark, struck):
                break
            assert time.monotonic() - started < DEADLINE_S, (mark, struck, status)
            time.sleep(LOOK_EVERY_S)
        return time.monotonic() - started

    def wait_until_ended(self) -> int:
        """Wait until all iterations are played and the driver is gone; its exit code."""
        while not self.ended:
            self.recovered(self.trained, set())
        return self.driver.wait(END_S)

    @property
    def trained(self) -> int:
        """Iterations trained, those of a life that is over and played again included."""
        path = self.config.run_dir / "metrics.jsonl"
        return len(path.read_text("utf-8").splitlines()) if path.is_file() else 0


def _is_well(status: dict[str, Any], mark: int, struck: set[int]) -> bool:
    fleets = status["fleets"].values()
    members = [member for fleet in fleets for member in fleet["members"]]
    return (
        status["iteration"] > mark
        and all(fleet["serving"] == fleet["target"] for fleet in fleets)
        and not struck & {member.get("pid") for member in members}
    )


@dataclass(frozen=True)
class Kind:
    """A kind of fault; `strike` returns the seconds until the run was well again, None where there
    was nothing to strike."""

    weight: int
    strike: Callable[[Stage], float | None]


def _blow(name: str, number: signal.Signals) -> Callable[[Stage], float | None]:
    """A signal to one of the run's processes of that name."""

    def strike(stage: Stage) -> float | None:
        try:
            victim = stage.chance.choice(stage.processes(name))
            victim.send_signal(number)
        except (IndexError, psutil.NoSuchProcess):
            return None  # the run has just ended, or replaces it
        return _gone(victim) + stage.recovered(stage.trained, {victim.pid})

    return strike


def _gone(victim: psutil.Process) -> float:
    """Wait until a process that was struck is gone, by itself or by who found it hung; seconds."""
    started = time.monotonic()
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.wait(DEADLINE_S)
    return time.monotonic() - started


def _kill_driver(stage: Stage) -> float:
    stage.driver.kill()
    stage.driver.wait()
    return stage.recovered(stage.trained, set())


def _lose_node(stage: Stage) -> float:
    """The second node with all on it; another comes a while later."""
    node = psutil.Process(stage.second.pid)
    processes = [node, *node.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
    time.sleep(NODE_AWAY_S)
    stage.join()
    struck = {process.pid for process in processes}
    return NODE_AWAY_S + stage.recovered(stage.trained, struck)


def _slow_network(stage: Stage) -> float:
    """The second node and the head hear of each other late for a while."""
    stage.proxy.delay_s = SLOW_S
    time.sleep(SLOW_FOR_S)
    stage.proxy.delay_s = 0.0
    return stage.recovered(stage.trained, set())


def _fill_disk(stage: Stage) -> float:
    """No room on the run's disk: the driver says so and ends; there is room again, and it is
    started again."""
    filler = stage.config.run_dir.with_suffix(".filler")
    before = stage.log.stat().st_size
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    try:
        code = stage.driver.wait(DISK_WAIT_S)
    finally:
        filler.unlink()
    said = stage.log.read_text()[before:]
    assert code in (1, 2), code
    assert "Traceback" not in said, said[-4000:]
    return stage.recovered(stage.trained, set())


KINDS = {
    "rollout_killed": Kind(18, _blow("ray::RolloutActor", signal.SIGKILL)),
    "rollout_hung": Kind(18, _blow("ray::RolloutActor", signal.SIGSTOP)),
    "judge_killed": Kind(8, _blow("ray::QualityActor", signal.SIGKILL)),
    "judge_hung": Kind(6, _blow("ray::QualityActor", signal.SIGSTOP)),
    "verifier_killed": Kind(12, _blow("ray::VerifierActor", signal.SIGKILL)),
    "verifier_hung": Kind(10, _blow("ray::VerifierActor", signal.SIGSTOP)),
    "learner_killed": Kind(8, _blow("ray::LearnerRank", signal.SIGKILL)),
    "learner_hung": Kind(4, _blow("ray::LearnerRank", signal.SIGSTOP)),
    "driver_killed": Kind(8, _kill_driver),
    "node_lost": Kind(4, _lose_node),
    "slow_network": Kind(3, _slow_network),
    "disk_full": Kind(3, _fill_disk),
}
"""By name, with how many of a hundred and two they are."""
ENDS_DRIVER = ("driver_killed", "disk_full")
"""Kinds after which the driver is started again, as a cluster's job controller would."""
