"""docs/cluster.md, walked from its first line to its last, on two nodes with a real Prometheus."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from benchmarks.local_cluster import Head, alive, free_ports, joined, running_head
from cluster.audit import check_ledger
from cluster.claim import living_driver
from tests.cluster.dashboards import (
    DEPLOY,
    Question,
    alert_questions,
    dashboard_questions,
    operands,
)
from tests.cluster.head import commanded
from tests.cluster.whole_run import ANSWERS, SETTINGS
from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs" / "cluster.md").read_text("utf-8")
DEADLINE_S = 150.0
ITERATIONS = 300
"""More than are played, on a busy machine, while a killed newcomer comes up again."""
WITHOUT = ("judge", "quality", "safety", "preference", "heldout")
"""What this run has not, so that panels that ask for nothing else are empty."""
RARE = (
    "SelfplayGuardAlarm",
    "SelfplayQueriesRejected",
    "SelfplayGroupsDropped",
    "SelfplayRewardFailures",
    "SelfplayStepsDiscarded",
    "SelfplayVerdictsUnread",
)
"""Alerts on series that begin with a fault, a rejected query or a judge."""


class Walk:
    """Someone who types what the document says, with a smaller game and other ports."""

    def __init__(self, head: Head, run_dir: Path, settings: list[str]) -> None:
        self.head = head
        self.run_dir = run_dir
        self.settings = settings

    def types(self, line: str) -> str:
        """Run a line of the document; return what it prints."""
        assert f"    {line}" in DOCUMENT, f"docs/cluster.md does not say: {line}"
        _, *words = shlex.split(line.partition("#")[0])
        words = [word.replace("runs/walk", str(self.run_dir)) for word in words]
        if words[0] == "submit":
            words = [word for word in words if "=" not in word]
            words += ["--address", self.head.address, *self.settings]
        return self.does(*words)

    def does(self, *words: str, code: int = 0) -> str:
        """Run a command of ours, which ends with `code`; return what it prints."""
        done = commanded(self.head, *words)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def status(self) -> dict[str, Any] | None:
        """What the run says of itself, None while it starts."""
        done = commanded(self.head, "status", str(self.run_dir), "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def reaches(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask for the status until it is as it should be."""
        return until(
            lambda: (seen := self.status()) is not None and condition(seen) and seen, self.status
        )


def until(condition: Callable[[], Any], seen: Callable[[], Any] = lambda: "") -> Any:
    """Wait until a condition holds and return it; `seen` tells why it does not in time."""
    deadline = time.monotonic() + DEADLINE_S
    while not (held := condition()):
        assert time.monotonic() < deadline, f"it has not come to that in time {seen()}"
        time.sleep(0.5)
    return held


def played(run_dir: Path) -> int:
    """The iterations that a run has finished."""
    lines = run_dir / "metrics.jsonl"
    return len(lines.read_bytes().splitlines()) if lines.exists() else 0


def rollout(status: dict[str, Any]) -> dict[str, Any]:
    return status["fleets"]["rollout"]


class Prometheus:
    """A running Prometheus, asked through its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def asks(self, expression: str) -> list[dict[str, Any]]:
        reply = requests.get(f"{self.url}/api/v1/query", {"query": expression}, timeout=10).json()
        assert reply["status"] == "success", (expression, reply)
        return reply["data"]["result"]

    def members(self) -> set[str]:
        """The rollout actors whose endpoints it reaches."""
        up = self.asks('up{fleet="rollout"} == 1')
        return {one["metric"]["member"] for one in up}

    def empty(self, questions: list[Question]) -> list[str]:
        return [f"{q.asked_by}: {q.expression}" for q in questions if not self.asks(q.expression)]


@contextmanager
def prometheus(program: str, folder: Path, discovery: int) -> Iterator[Prometheus]:
    """Prometheus with the shipped configuration, only faster."""
    shipped = shutil.copytree(DEPLOY / "prometheus", folder / "prometheus")
    config = shipped / "prometheus.yml"
    text = config.read_text("utf-8").replace("selfplay-driver:9400", f"127.0.0.1:{discovery}")
    config.write_text(text.replace("10s", "2s").replace("5s", "2s"))
    (port,) = free_ports(1)
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    # It says again and again that nobody listens yet.
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        until(lambda: answers(f"{server.url}/-/ready"))
        yield server
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.mark.timeout(900)
def test_the_walk_of_the_documentation(model: Path, tmp_path: Path, debian_program):
    program = debian_program("prometheus", "prometheus")
    run_dir = tmp_path / "walk"
    (discovery,) = free_ports(1)
    # A verifier that travels with the project.
    game = [each for each in SETTINGS if not each.startswith(("rewards.parts", "iterations"))]
    settings = [*game, f"iterations={ITERATIONS}", f"model.path={model}", f"run_dir={run_dir}"]
    settings.append(f"metrics.discovery_port={discovery}")
    with (
        running_head() as head,
        joined(head),
        prometheus(program, tmp_path, discovery) as watcher,
    ):
        assert len(alive(head.address)) == 2
        walk = Walk(head, run_dir, settings)
        submit = "configs/quickstart.yaml run_dir=$PWD/runs/walk metrics.discovery_port=9400"
        walk.types(f"selfplay submit --detach {submit}")
        # A command is dear, a file is not.
        until(lambda: played(run_dir) >= 2)
        walk.reaches(lambda status: status["iteration"] >= 2)
        assert "rollout" in walk.types("selfplay status runs/walk")
        until(lambda: watcher.members() == {"rollout-0"})

        refused = walk.does("scale", str(run_dir), "rollout=2", "judge=2", code=2)
        assert "there is no fleet judge; there are rollout, reward_solved" in refused
        walk.types("selfplay scale runs/walk rollout=2")
        until(lambda: watcher.members() == {"rollout-0", "rollout-1"})
        grown = walk.reaches(lambda status: rollout(status)["serving"] == 2)
        (newcomer,) = (m for m in rollout(grown)["members"] if m["name"] == "rollout-1")
        os.kill(newcomer["pid"], signal.SIGKILL)
        until(lambda: watcher.asks('selfplay_fleet_restarts{fleet="rollout"} == 1'))
        walk.reaches(lambda s: rollout(s)["restarts"] == 1 and rollout(s)["serving"] == 2)

        due = [
            question
            for question in dashboard_questions(run="walk")
            if not question.may_be_empty and not any(w in question.expression for w in WITHOUT)
        ]
        assert len(due) > 30
        until(lambda: not watcher.empty(due), lambda: watcher.empty(due))
        rules = [q for q in alert_questions() if q.asked_by not in RARE]
        compared = [replace(q, expression=operands(q.expression)) for q in rules]
        until(lambda: not watcher.empty(compared), lambda: watcher.empty(compared))

        walk.does("scale", str(run_dir), "rollout=1")
        until(lambda: len(watcher.members()) == 1)
        assert played(run_dir) < ITERATIONS, "too short a run for this machine: nothing to stop"
        walk.types("selfplay stop runs/walk")
        assert not (run_dir / "summary.json").exists()
        assert living_driver(run_dir) is None
        assert "is not running: selfplay resume" in walk.does("status", str(run_dir), code=2)
        assert "Done:" in walk.types(f"selfplay submit {submit}")
    assert json.loads((run_dir / "summary.json").read_text())["iterations"] == ITERATIONS
    assert check_ledger(run_dir, answers=ANSWERS, staleness=0) == []
