"""One training stage in a process of its own.

A process for each, since a run ends with its signals ignored and its metrics registered, and since
a stage that dies in native code must not take the experiment with it.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cluster.signals import caught_signals


def play_apart(config: Path, overrides: Sequence[str]) -> int:
    """Run `selfplay train` to its end and return its exit code.

    A signal that asks for a stop goes to the stage, which writes a checkpoint; after that,
    KeyboardInterrupt is raised.
    """
    return run_apart([sys.executable, "-m", "cluster", "train", str(config), *overrides])


def run_apart(command: Sequence[str]) -> int:
    """Run a command to its end, passing signals on; its exit code. Raises as `play_apart`."""
    asked: list[int] = []
    processes: list[subprocess.Popen[bytes]] = []

    def ask(number: int) -> None:
        asked.append(number)
        for process in processes:
            process.send_signal(number)

    with _caught(ask):
        # In a session of its own, so that a terminal's Ctrl-C reaches it once, through us.
        process = subprocess.Popen(command, start_new_session=True)
        processes.append(process)
        for number in asked:
            process.send_signal(number)
        code = process.wait()
    if asked:
        raise KeyboardInterrupt
    return code


@contextlib.contextmanager
def _caught(ask: Callable[[int], None]) -> Iterator[None]:
    before = {n: signal.signal(n, lambda number, _: ask(number)) for n in caught_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
