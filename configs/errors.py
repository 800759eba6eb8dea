"""Errors that are no fault of the program: one sentence, shown without a traceback, exit code 2."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_ROOM = "free some space, then continue the run with selfplay resume"
_RIGHTS = "name a place that you may write to"
DISK_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOTDIR: "a part of this path is a file, name another place",
}
"""What to do about a disk that does not take what is written, by errno."""


class UserError(Exception):
    """One clear sentence that names the key, file or actor at fault and the remedy."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError that names none: a full disk shows in a write, not in an open."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def disk_fault(error: OSError) -> str | None:
    """The sentence for a disk that cannot be written, None where the error is another or unnamed.

    An OSError without a file's name is one that nobody expected there: its traceback is wanted.
    """
    if error.filename is None or error.errno not in DISK_REMEDIES:
        return None
    return f"{error.filename}: {error.strerror}: {DISK_REMEDIES[error.errno]}"
