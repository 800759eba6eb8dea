"""A real Ray cluster on loopback, its nodes processes of their own, with a token of its own.

Whatever opens a Ray session on it is best a process too, since a process has one session.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

TOKEN = "a-token-of-this-cluster"
START_TRIES, START_DEADLINE_S = 3, 70.0
"""A raylet gives its agents 15 s, which a busy machine may not."""


@dataclass(frozen=True)
class Head:
    """A running head node, and an environment in which its token is found.

    `address` is its dashboard's, `gcs` what other nodes join, `pid` that of the process above all
    its others.
    """

    address: str
    gcs: str
    pid: int
    environment: dict[str, str]


def clean_environment(home: Path) -> dict[str, str]:
    """This process's, without what points at a Ray cluster or a token, at home in `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return kept | {"HOME": str(home), "PATH": path}


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def running_head() -> Iterator[Head]:
    """A head on loopback with token authentication."""
    # Ray's sockets want a short path. The last of its processes may still write as it is emptied.
    with tempfile.TemporaryDirectory(prefix="head-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(TOKEN)
        environment = clean_environment(home)
        for _ in range(START_TRIES):
            with started(home, environment) as head:
                if head is not None:
                    yield head
                    return
        raise AssertionError(f"no head came up in {START_TRIES} tries")


@contextlib.contextmanager
def started(home: Path, environment: dict[str, str]) -> Iterator[Head | None]:
    """A head, None where it did not come up."""
    names = "port dashboard-port ray-client-server-port dashboard-agent-listen-port"
    names += " dashboard-agent-grpc-port runtime-env-agent-port metrics-export-port"
    ports = dict(zip(names.split(), free_ports(7), strict=True))
    command = ["--head", *(f"--{name}={port}" for name, port in ports.items())]
    command += ["--dashboard-host=127.0.0.1", f"--temp-dir={home / 'ray'}", "--num-cpus=2"]
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    with node(command, environment) as process:
        head = Head(address, f"127.0.0.1:{ports['port']}", process.pid, environment)
        yield head if answers(address, process) else None


@contextlib.contextmanager
def joined(head: Head, gcs: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A second node, which finds the head at `gcs`, or at the head's own address.

    It has joined when this gives it.
    """
    # A head shows its token by itself, a node that joins only where it is told to.
    environment = head.environment | {"RAY_AUTH_MODE": "token"}
    before = alive(head.address)
    for _ in range(START_TRIES):
        command = [f"--address={gcs or head.gcs}", "--num-cpus=2", *_ports_of_a_node()]
        # In the head's folder each would unpack a job's files over those that the other reads.
        with (
            tempfile.TemporaryDirectory(prefix="node-", ignore_cleanup_errors=True) as folder,
            node([*command, f"--temp-dir={folder}"], environment) as process,
        ):
            until(lambda: alive(head.address) - before or process.poll() is not None)
            if alive(head.address) - before and process.poll() is None:
                yield process
                return
    raise RuntimeError(f"no second node has joined in {START_TRIES} tries")


def _ports_of_a_node() -> list[str]:
    names = "dashboard-agent-listen-port dashboard-agent-grpc-port runtime-env-agent-port"
    names += " metrics-export-port node-manager-port object-manager-port"
    ports = zip(names.split(), free_ports(6), strict=True)
    return [f"--{name}={port}" for name, port in ports]


@contextlib.contextmanager
def node(arguments: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start …`, ended with all its processes."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(address: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a head takes jobs; False where it ends, or time does."""
    came = until(lambda: bool(alive(address)) or process.poll() is not None)
    return came and process.poll() is None


def alive(address: str) -> set[str]:
    """The ids of the nodes that live, of the head whose dashboard is there; none while it does not
    answer."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with contextlib.suppress(requests.RequestException):
        reply = requests.get(f"{address}/nodes?view=summary", headers=bearer, timeout=30)
        if reply.ok:
            nodes = (row["raylet"] for row in reply.json()["data"]["summary"])
            return {node["nodeId"] for node in nodes if node.get("state") == "ALIVE"}
    return set()


def until(condition: Callable[[], object]) -> bool:
    """Wait until a condition holds; False where it does not in time."""
    deadline = time.monotonic() + START_DEADLINE_S
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return bool(held)
