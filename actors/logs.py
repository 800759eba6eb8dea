"""What a process logs: every line says of which run, by which actor, and where the game is."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

log = logging.getLogger(__name__)

FORMAT = (
    "%(asctime)s %(levelname)s run=%(run)s actor=%(actor)s iteration=%(iteration)s"
    " version=%(version)s %(name)s: %(message)s"
)
LOGS = "logs"
"""The folder of a run's logs in its directory."""
APART = ("vllm", "DeepSpeed")
"""Loggers that hand nothing to the root, once their library is at work."""

_kept: list[LogFile] = []
"""The handler of this process's log, where one is kept."""
_now: dict[str, object] = dict.fromkeys(("run", "actor", "iteration", "version"), "-")


def note(**fields: object) -> None:
    """Say where the process is from now on: `run`, `actor`, `iteration`, `version`."""
    _now.update(fields)


class Fields(logging.Filter):
    """Gives every record the fields that `FORMAT` shows."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let all records pass."""
        vars(record).update(_now)
        return True


class LogFile(logging.FileHandler):
    """A log for which the disk may have no room, or no folder any more: that ends nothing.

    What a full disk ends says so itself, and is not to be hidden behind errors of the log.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (its name in logging)
        """Say nothing of the disk."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, whatever of it can no longer be written."""
        with contextlib.suppress(OSError):
            super().close()


def kept_in(path: Path) -> LogFile:
    """A handler that writes lines of `FORMAT` to a file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.addFilter(Fields())
    return handler


def keep_log(run_dir: Path, actor: str) -> None:
    """Have this process log to `run_dir`/logs/`actor`.log from now on, from INFO on.

    Nothing is kept where that folder is not there: the driver makes it, on a disk that the nodes
    of its run share.
    """
    logs = run_dir / LOGS
    if not logs.is_dir():
        return
    note(run=run_dir.name, actor=actor)
    try:
        handler = kept_in(logs / f"{actor}.log")
    except OSError as error:
        log.warning("no log of %s is kept: %s", actor, error)
        return
    _kept[:] = [handler]
    _listen(logging.getLogger(), handler)
    keep_libraries()


def keep_libraries() -> None:
    """Keep what the loggers `APART` say too, if a log is kept: to be called once they are there."""
    apart = [logger for name in APART if not (logger := logging.getLogger(name)).propagate]
    for handler in _kept:
        for logger in apart:
            _listen(logger, handler)


def _listen(logger: logging.Logger, handler: logging.Handler) -> None:
    logger.addHandler(handler)  # which it does once
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
