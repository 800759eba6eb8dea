"""Our commands, for a head of this machine."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.local_cluster import Head
from tests.conftest import ROOT

PACKAGES = {"actors", "cluster", "configs", "evaluation", "learner", "playground", "rewards"}
"""What travels of this project."""


def submitted(head: Head, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """`selfplay submit` to a head."""
    return commanded(head, "submit", "--address", head.address, *arguments, **changed)


def commanded(head: Head, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """A command of ours by someone who has the head's token."""
    command = [sys.executable, "-m", "cluster", *arguments]
    environment = head.environment | changed
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
