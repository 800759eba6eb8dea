"""Training stages in processes of their own, one or several at a time.

A process for each, since a run ends with its signals ignored and its metrics registered, and since
a stage that dies in native code must not take the experiment with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cluster.signals import caught_signals


class StageProcesses:
    """Runs commands, each to its end, in whatever threads `run` is called.

    To be entered in the main thread. In the meantime a signal that asks for a stop goes to every
    command that runs, and to those that begin after it; nothing else comes of it than that `asked`
    is true from then on.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._asked: list[int] = []
        # A handler can interrupt the main thread while it holds the lock.
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        """Take the signals."""
        self._before = {
            n: signal.signal(n, lambda number, _: self._ask(number)) for n in caught_signals()
        }
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether a signal has asked for a stop."""
        return bool(self._asked)

    def play(self, name: str, config: Path, overrides: Sequence[str]) -> int:
        """Run `selfplay train` to its end and return its exit code."""
        return self.run(name, [sys.executable, "-m", "cluster", "train", str(config), *overrides])

    def run(self, name: str, command: Sequence[str]) -> int:
        """Run a command to its end, print its lines behind its name, and return its exit code."""
        with self._lock:
            # In a session of its own, so that a terminal's Ctrl-C reaches it once, through us.
            process = subprocess.Popen(
                command,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            self._running.add(process)
            for number in self._asked:
                process.send_signal(number)
        assert process.stdout is not None, "it is a pipe"
        for line in process.stdout:
            print(f"{name} | {line}", end="", flush=True)
        code = process.wait()
        with self._lock:
            self._running.remove(process)
        return code

    def _ask(self, number: int) -> None:
        with self._lock:
            self._asked.append(number)
            for process in self._running:
                process.send_signal(number)
