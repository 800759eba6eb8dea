"""A process of its own for a test on GPUs.

The tests' environment makes DeepSpeed work on CPU, and Ray hands it on to its workers.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT


def run(module: str, *arguments: str) -> str:
    """Run a module of the tests there, which has to end well; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return done.stdout
