"""A run's directory: who may write into it, and where each file lies.

One driver at a time: `claimed` writes driver.json, with which `selfplay stop` finds the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.load import RESOLVED, differences, load_resolved, save_resolved
from configs.schema import RunConfig

DRIVER = "driver.json"
SAMPLES, SAMPLE_BYTES = 16, 1 << 16
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
STOP_DEADLINE_S = 600.0
LOOK_EVERY_S = 0.2


def open_run(config: RunConfig) -> bool:
    """Make the run's directory, or find the same run in it; True where it was there.

    Raises UserError where another configuration lives there, or the disk cannot be written.
    """
    if not (config.run_dir / RESOLVED).is_file():
        _refuse_strangers(config.run_dir)
        save_resolved(config, config.run_dir)
        return False
    changed = differences(load_resolved(config.run_dir), config)
    if changed:
        raise UserError(
            f"run_dir {config.run_dir} holds a run with another configuration"
            f" ({'; '.join(changed[:4])}{' …' if len(changed) > 4 else ''}): choose another"
            " run_dir, or continue that run with selfplay resume"
        )
    return True


def reopen_run(run_dir: Path) -> RunConfig:
    """The configuration of the run in `run_dir`, wherever the directory was moved to."""
    return load_resolved(run_dir).model_copy(update={"run_dir": run_dir})


def model_identity(model_path: str, revision: str | None) -> str:
    """What tells one initial model from another: a hub id's name, a folder's contents in short.

    Of weight files, samples count: hashing gigabytes at each start is not worth it.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        return f"{model_path}@{revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin"):
            _digest_samples(digest, path)
        elif path.name in ("config.json", "tokenizer.json"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _digest_samples(digest: hashlib._Hash, path: Path) -> None:
    """Take in a file's size and evenly spaced parts of it, its first and its last among them."""
    size = path.stat().st_size
    digest.update(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        for place in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * place // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Be the one driver of a run; UserError where another is alive."""
    other = living_driver(run_dir)
    if other is not None:
        raise UserError(
            f"{run_dir} is being trained by process {other['pid']} on {other['host']}: wait for"
            f" it, or end it with selfplay stop {run_dir}"
        )
    me = {"pid": os.getpid(), "host": socket.gethostname(), "born": _birth(os.getpid())}
    (run_dir / DRIVER).write_text(json.dumps(me))
    try:
        yield
    finally:
        (run_dir / DRIVER).unlink(missing_ok=True)


def living_driver(run_dir: Path) -> dict[str, Any] | None:
    """Who drives the run, None where nobody does; one on another host counts as alive."""
    try:
        driver = json.loads((run_dir / DRIVER).read_text())
    except (OSError, ValueError):
        return None
    if driver["host"] == socket.gethostname() and _birth(driver["pid"]) != driver["born"]:
        return None
    return driver


def stop_driver(run_dir: Path) -> None:
    """Ask a run's driver to write a checkpoint and end; return when it has."""
    load_resolved(run_dir)
    driver = living_driver(run_dir)
    if driver is None:
        raise UserError(f"{run_dir} is not running")
    if driver["host"] != socket.gethostname():
        raise UserError(
            f"{run_dir} is driven from {driver['host']}: run selfplay stop there, or ray job stop"
        )
    os.kill(driver["pid"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_DEADLINE_S
    while living_driver(run_dir) is not None:
        if time.monotonic() > deadline:
            raise UserError(
                f"{run_dir}: process {driver['pid']} has not ended within {STOP_DEADLINE_S:.0f} s;"
                f" see {run_dir / 'logs' / 'driver.log'}"
            )
        time.sleep(LOOK_EVERY_S)


@contextlib.contextmanager
def logged(run_dir: Path) -> Iterator[None]:
    """Write the driver's log to RUN/logs/driver.log, and warnings to the terminal too."""
    (run_dir / "logs").mkdir(exist_ok=True)
    to_file = logging.FileHandler(run_dir / "logs" / "driver.log", encoding="utf-8")
    to_file.setFormatter(logging.Formatter(LOG_FORMAT))
    to_terminal = logging.StreamHandler()
    to_terminal.setFormatter(logging.Formatter("selfplay: %(levelname)s: %(message)s"))
    to_terminal.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in (to_file, to_terminal):
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in (to_file, to_terminal):
            root.removeHandler(handler)
            handler.close()


def _refuse_strangers(run_dir: Path) -> None:
    if run_dir.is_file():
        raise UserError(f"run_dir {run_dir} is a file: choose another run_dir")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise UserError(
            f"run_dir {run_dir} is not empty and holds no run ({RESOLVED} is not there): choose"
            " another run_dir"
        )


def _birth(pid: int) -> str | None:
    """When a process began, in clock ticks since boot; None where there is none.

    A process id alone may since belong to someone else.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return None
    state, birth = after_name.split()[0], after_name.split()[19]
    return None if state == "Z" else birth
