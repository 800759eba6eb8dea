"""What the benchmarks share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measure

MIB = 1 << 20
PARENT = """
import subprocess, sys
child = "import sys; held = bytearray(b'x') * (150 << 20); print(flush=True); sys.stdin.read(1)"
process = subprocess.Popen([sys.executable, "-c", child], stdin=-1, stdout=-1)
process.stdout.readline()
held = bytearray(b"x") * (150 << 20)
import time; time.sleep(1)
process.communicate(b"x")
"""


def test_the_memory_of_a_command_is_that_of_all_its_processes_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "MEMORY_EVERY_S", 0.1)
    run_dir = tmp_path / "runs" / "one"
    assert measure.peak_memory(run_dir) is None
    measure.run([sys.executable, "-c", PARENT], run_dir)
    peak = measure.peak_memory(run_dir)
    assert peak is not None
    assert 300 * MIB < peak < 450 * MIB
    measure.run([sys.executable, "-c", "import time; time.sleep(0.3)"], run_dir)
    assert measure.peak_memory(run_dir) == peak, "a run that is continued keeps what it held before"


def test_a_command_that_fails_is_an_error(tmp_path: Path):
    with pytest.raises(subprocess.CalledProcessError):
        measure.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "run")


def test_a_command_is_kept_without_where_things_lie_on_this_machine(monkeypatch):
    arguments = ["benchmarks/peer.py", "--peer-python", "/home/me/venv/bin/python", "--turns", "3"]
    monkeypatch.setattr("sys.argv", arguments)
    assert measure.command() == "python -m benchmarks.peer --peer-python python --turns 3"
    monkeypatch.setattr(
        "sys.argv", ["benchmarks/peer.py", "--peer-python", ".venv-peer/bin/python"]
    )
    assert measure.command() == "python -m benchmarks.peer --peer-python .venv-peer/bin/python"
