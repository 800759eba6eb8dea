"""Whole runs through the command line: their settings, and the process with all its children."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

QUERIES, ANSWERS, ITERATIONS = 4, 4, 16
SETTINGS = [
    "algorithm=lsp_zero",
    "challenger.reward=minus_v",
    "challenger.learnability_part=null",
    "challenger.alpha=0.5",
    "rewards.quality=null",
    "gate.task_verifier=null",
    "heldout=null",
    f"queries={QUERIES}",
    f"answers={ANSWERS}",
    f"iterations={ITERATIONS}",
    "checkpoint.every=4",
    "rewards.parts.0.function=tests.cluster.length:score",
    "model.make=null",
    "rollout.threads=1",
    "learner.threads=1",
    "learner.learning_rate=1e-3",
]


def overrides(model: Path, run_dir: Path) -> list[str]:
    return [*SETTINGS, f"model.path={model}", f"run_dir={run_dir}"]


class Command:
    """`python -m cluster …` with a mark by which all its processes are found."""

    def __init__(self, *arguments: str) -> None:
        self.mark = f"SELFPLAY_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "cluster", *arguments],
            env=os.environ | {name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []

    def until(self, text: str) -> None:
        """Read its output up to a line with `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if text in line:
                return
        pytest.fail(f"it ended without {text!r}:\n{''.join(self.said)}")

    def end(self) -> int:
        """Read the rest and wait."""
        assert self.process.stdout is not None
        self.said.extend(self.process.stdout)
        return self.process.wait()

    def children(self, name: str) -> list[int]:
        """Process ids of its Ray actors of the class `name`."""
        return [
            pid
            for pid in self.living()
            if f"ray::{name}" in Path(f"/proc/{pid}/cmdline").read_text()
        ]

    def living(self) -> list[int]:
        """Process ids that carry the mark."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self.mark in (folder / "environ").read_text():
                    found.append(int(folder.name))
            except (OSError, UnicodeDecodeError):
                continue
        return found
