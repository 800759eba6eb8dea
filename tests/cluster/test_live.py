"""Questions about runs that are not live; docs/cluster.md's walk asks a living one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def asked(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["status", "scale", "stop"])
def test_a_run_that_is_not_there_is_one_sentence(command: str, tmp_path: Path):
    sizes = ["rollout=2"] if command == "scale" else []
    done = asked(command, str(tmp_path), *sizes)
    assert done.returncode == 2
    assert done.stderr.startswith("selfplay: ")
    assert "Traceback" not in done.stderr
