"""One driver at a time: who trains a run, and how it is asked to stop.

The driver holds a lock on RUN/driver.json for as long as it lives, on the shared file system too,
so that a dead driver never blocks its run, wherever it died. The file says who holds the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel, Field, ValidationError

from configs.errors import UserError, naming
from configs.load import RESOLVED, load_resolved

DRIVER = "driver.json"
STOP_DEADLINE_S = 600.0
LOOK_EVERY_S = 0.2
TRIES, TRY_EVERY_S = 10, 0.02
"""A look at the lock holds it for an instant, and its holder takes an instant to write its name."""


class Driver(BaseModel):
    """The process that trains a run."""

    pid: int = Field(gt=1)
    host: str
    ray: str | None = None
    """Address of the Ray it plays on, once it does."""
    control: str | None = None
    """Name of the actor by which it is asked (`cluster.control`)."""


Announce = Callable[[str | None, str | None], None]
"""Lets others know the address of Ray and the name of the control actor, or that there are none."""


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[Announce]:
    """Be the one driver of a run; UserError where another is alive."""
    with (run_dir / DRIVER).open("a+", encoding="utf-8") as file:

        def announce(ray: str | None, control: str | None) -> None:
            driver = Driver(pid=os.getpid(), host=socket.gethostname(), ray=ray, control=control)
            with naming(run_dir / DRIVER):
                file.truncate(0)
                file.write(driver.model_dump_json())
                file.flush()

        _claim(file, run_dir)
        announce(None, None)
        try:
            yield announce
        finally:
            # Before the lock goes with the file: whoever comes next finds nobody.
            file.truncate(0)


def living_driver(run_dir: Path) -> Driver | None:
    """Who drives the run, None where nobody does."""
    try:
        with (run_dir / DRIVER).open(encoding="utf-8") as file:
            # Shared, so that two who look at once do not take each other for the driver.
            return None if _locked(file, fcntl.LOCK_SH) else _read(file)
    except FileNotFoundError:
        return None


def is_driven_elsewhere(run: str) -> bool:
    """Whether a run's driver is on another host, or unknown here: `run` is no directory of one."""
    if not (Path(run) / RESOLVED).is_file():
        return not Path(run).exists()
    driver = living_driver(Path(run))
    return driver is not None and driver.host != socket.gethostname()


def stop_driver(run_dir: Path) -> None:
    """Ask a run's driver on this host to write a checkpoint and end; return when it has."""
    load_resolved(run_dir)
    driver = living_driver(run_dir)
    if driver is None:
        raise UserError(f"{run_dir} is not running")
    if driver.host != socket.gethostname():
        raise UserError(f"{run_dir} is driven from {driver.host}, not from here")
    try:
        os.kill(driver.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError:
        raise UserError(f"{run_dir} is driven by another user: let them stop it") from None
    deadline = time.monotonic() + STOP_DEADLINE_S
    while living_driver(run_dir) is not None:
        if time.monotonic() > deadline:
            raise UserError(
                f"{run_dir}: process {driver.pid} has not ended within {STOP_DEADLINE_S:.0f} s;"
                f" see {run_dir / 'logs' / 'driver.log'}"
            )
        time.sleep(LOOK_EVERY_S)


def _claim(file: TextIO, run_dir: Path) -> None:
    for _ in range(TRIES):
        if _locked(file, fcntl.LOCK_EX):
            return
        time.sleep(TRY_EVERY_S)
    driver = _read(file)
    raise UserError(
        f"{run_dir} is being trained by process {driver.pid} on {driver.host}: wait for it, or end"
        f" it with selfplay stop {run_dir}"
    )


def _locked(file: TextIO, kind: int) -> bool:
    """Take the lock, which goes when the file is closed; False where another holds it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise UserError(
            f"{file.name} cannot be locked ({error.strerror}), and a lock keeps a second driver"
            " away: mount the file system of run_dir with locks, or choose another"
        ) from None
    return True


def _read(file: TextIO) -> Driver:
    """Who holds the lock, as the file says it."""
    for _ in range(TRIES):
        file.seek(0)
        with contextlib.suppress(ValidationError):
            return Driver.model_validate_json(file.read())
        time.sleep(TRY_EVERY_S)
    raise UserError(
        f"{file.name} is locked by a process that it does not name: end that process, which"
        f" fuser {file.name} shows on its machine"
    )
