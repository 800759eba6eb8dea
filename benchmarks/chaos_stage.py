"""The two nodes of `make chaos`, and a run on them that is watched while it is struck."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import ray
from ray.exceptions import RayError

from benchmarks.local_cluster import Head, joined, running_head
from benchmarks.measure import children
from benchmarks.proxy import Proxy
from cluster.control import NAMESPACE
from configs.load import RESOLVED
from configs.schema import RunConfig

END_S = 60.0
"""Seconds a driver may take to end when it is asked to, or when its run has ended."""
DEADLINE_S = 420.0
"""A run that is not well so long after a fault has not survived it."""
LOOK_EVERY_S = 0.5
STATUS_S = 10.0
LEARNER = "ray::LearnerRank"


class NotWellError(RuntimeError):
    """The run has not survived."""


class Nodes:
    """A head, and a second node whose link to the head's GCS passes through a proxy.

    This process is connected to the head from the beginning, before there is another node whose
    loss would be its own end.
    """

    def __init__(self, head: Head) -> None:
        self.head = head
        ray.init(
            address=head.gcs, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
        )
        # Ray's own handler would end this process on the spot, and leave all others behind.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # Nodes know each other by this address, and Ray puts it in the place of loopback's.
        self.proxy = Proxy(head.gcs, ray.util.get_node_ip_address())
        self._second = contextlib.ExitStack()
        self.second: psutil.Process

    def join(self) -> None:
        """Let a second node join, in the place of the one before."""
        self._second.close()
        self.second = psutil.Process(
            self._second.enter_context(joined(self.head, self.proxy.address)).pid
        )

    def processes(self, name: str) -> list[psutil.Process]:
        """Living processes of both nodes whose command begins with `name`."""
        found = []
        for node in (psutil.Process(self.head.pid), self.second):
            for process in children(node):
                with contextlib.suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith(name):
                        found.append(process)
        return found

    def close(self) -> None:
        """End the second node, and the connection."""
        ray.shutdown()
        self._second.close()
        self.proxy.close()


@contextlib.contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Both nodes, up."""
    with running_head() as head, contextlib.closing(Nodes(head)) as nodes:
        nodes.join()
        yield nodes


@dataclass
class Stage:
    """A run on two nodes, whose driver is started again whenever it has ended before the run has.

    `log` is where the driver prints, on another disk than the run's; `ends_at` when all must be
    over, in monotonic time.
    """

    nodes: Nodes
    config: RunConfig
    chance: random.Random
    log: Path
    ends_at: float
    ends: list[int] = field(default_factory=list)
    """Exit codes of drivers that ended before their run."""
    blows: list[str] = field(default_factory=list)
    """All that struck, those included that the run's end hid."""

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        # psutil's, unlike the library's, does not take a signal to a process that has ended.
        with contextlib.suppress(psutil.NoSuchProcess):
            self.driver.terminate()
        for driver in psutil.wait_procs([self.driver], timeout=END_S)[1]:
            driver.kill()

    def begin(self) -> None:
        """Start the driver, or start it again: the same command continues the run."""
        run_dir = self.config.run_dir
        if (run_dir / RESOLVED).is_file():
            arguments = ["resume", str(run_dir)]
        else:
            path = self.log.with_suffix(".yaml")
            path.write_text(json.dumps(self.config.model_dump(mode="json")))
            arguments = ["train", str(path)]
        # As Ray's jobs are started.
        head = self.nodes.head
        environment = head.environment | {"RAY_ADDRESS": head.gcs, "RAY_AUTH_MODE": "token"}
        with self.log.open("ab") as said:
            command = [sys.executable, "-m", "cluster", *arguments]
            self.driver = psutil.Popen(command, stdout=said, stderr=said, env=environment)

    @property
    def ended(self) -> bool:
        """Whether all iterations are played."""
        return (self.config.run_dir / "summary.json").is_file()

    @property
    def trained(self) -> int:
        """Iterations trained, those of a life that is over and played again included."""
        with contextlib.suppress(FileNotFoundError):
            return (self.config.run_dir / "metrics.jsonl").read_bytes().count(b"\n")
        return 0

    def status(self) -> dict[str, Any] | None:
        """What the run says of itself; None where it does not answer."""
        with contextlib.suppress(ValueError, RayError, TimeoutError):
            actor = ray.get_actor(str(self.config.run_dir), namespace=NAMESPACE)
            good, content = ray.get(actor.ask.remote("status", {}), timeout=STATUS_S)
            return content if good else None
        return None

    def becomes_well(self, struck: list[psutil.Process]) -> bool:
        """Wait until the run is well without those `struck`; False where it has ended before.

        It is well when its driver answers, every fleet is whole, the learner is there, and an
        iteration has ended that began after this was called. The driver is started again where it
        has ended. Raises NotWellError where the run does not recover.
        """
        started = time.monotonic()
        # The next one may be trained already, and wait for its publish.
        mark = self.trained + 1
        pids = {process.pid for process in struck}
        while not self.ended:
            if (code := self.driver.poll()) is not None and not self.ended:
                self.ends.append(int(code))
                self.begin()
            # What costs least is looked at first: the run has but two cores.
            if self.trained > mark and not any(lives(one) for one in struck) and self._well(pids):
                return True
            if time.monotonic() - started > DEADLINE_S or time.monotonic() > self.ends_at:
                raise NotWellError(f"{self.trained} of {mark} iterations; {self.status()}")
            time.sleep(LOOK_EVERY_S)
        return False

    def _well(self, struck: set[int]) -> bool:
        learners = {process.pid for process in self.nodes.processes(LEARNER)}
        status = self.status() if len(learners - struck) == self.config.learner.ranks else None
        return status is not None and is_whole(status, struck)

    def plays_on(self, more: int) -> bool:
        """Whether at least `more` iterations are to be played."""
        return not self.ended and self.trained + more <= self.config.iterations

    def wait_until_ended(self) -> int:
        """Wait until all iterations are played and the driver is gone; its exit code."""
        while self.becomes_well([]):
            pass
        return int(self.driver.wait(END_S))


def is_whole(status: dict[str, Any], struck: set[int]) -> bool:
    """Whether every fleet of a run's status serves in full, without the processes `struck`."""
    fleets = status["fleets"].values()
    members = [member for fleet in fleets for member in fleet["members"]]
    return all(fleet["serving"] == fleet["target"] for fleet in fleets) and struck.isdisjoint(
        member.get("pid") for member in members
    )


def lives(process: psutil.Process) -> bool:
    """Whether it is there, and no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
