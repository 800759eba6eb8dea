"""One bubblewrap process and the sandbox it makes: started, watched, and ended with all inside."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

PROGRAM = "/program.py"
"""Where the program is in a sandbox."""
LOOK_EVERY_S = 0.05
"""Between two looks at the memory in use."""
END_DEADLINE_S = 30.0
"""For the kernel to end what is in a sandbox once its first process is killed."""
INODE_BYTES = 1024
"""What the kernel keeps for a file beside its content, about."""
_CHUNK_BYTES = 65536
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def started(
    command: Sequence[str],
    inside: Sequence[str],
    files: Sequence[int],
    stdin: IO[bytes],
    ids: Sequence[int] = (),
) -> Iterator[SandboxProcess]:
    """Start a sandbox; nothing of it is left on leaving.

    Args:
        command: bwrap and its options.
        inside: What it runs; it is given one more argument, a descriptor that ends (reads as
            empty) when this process does.
        files: Descriptors that the options name.
        stdin: Standard input of what it runs.
        ids: Users and groups to map into the sandbox as they are, which takes root; empty: bwrap
            maps the one that its options name.
    """
    with (
        _pipe() as (status, status_end),
        _pipe() as (line_end, line),
        os.fdopen(os.dup(line_end.fileno()), "rb") as line_end_of_bwrap,
        open(os.devnull, "wb") as nowhere,
    ):
        ends = (status_end, line_end, line_end_of_bwrap, nowhere)
        options = ["--json-status-fd", str(status_end.fileno())]
        if ids:
            # bwrap waits for a byte of the line, and will not without the other option.
            options += ["--userns-block-fd", str(line_end_of_bwrap.fileno())]
            options += ["--info-fd", str(nowhere.fileno())]
        bwrap = subprocess.Popen(
            [*command, *options, "--", *inside, str(line_end.fileno())],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[*files, *(end.fileno() for end in ends)],
            env={},
            cwd="/",
        )
        for end in ends:
            end.close()
        process = SandboxProcess(bwrap, status)
        try:
            process.meet(ids)
            if ids:
                with suppress(BrokenPipeError):  # it failed; its standard error says why
                    os.write(line.fileno(), b"x")
            yield process
        finally:
            process.end()


class SandboxProcess:
    """A running sandbox, what it has written, and its exit status once it has ended."""

    def __init__(self, bwrap: subprocess.Popen[bytes], status: IO[bytes]) -> None:
        """Take the process of bwrap, and where it writes of the sandbox as lines of JSON."""
        assert bwrap.stdout is not None
        assert bwrap.stderr is not None
        self.out, self.err = bytearray(), bytearray()
        self.returncode: int | None = None
        """The exit status of what ran inside; None: it did not run, or not to its end."""
        self._bwrap, self._status = bwrap, status
        self._bwrap_pidfd = os.pidfd_open(bwrap.pid)
        self._first_pid: int | None = None
        self._first_pidfd: int | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bwrap_pidfd, selectors.EVENT_READ)
        self._selector.register(bwrap.stdout, selectors.EVENT_READ, self.out)
        self._selector.register(bwrap.stderr, selectors.EVENT_READ, self.err)

    def meet(self, ids: Sequence[int]) -> None:
        """Learn the sandbox's first process, and map users and groups of these numbers into it."""
        line = self._status.readline()
        if not line:
            return  # bwrap failed; its standard error says why
        self._first_pid = int(json.loads(line)["child-pid"])
        with suppress(ProcessLookupError):  # it failed early; so will bwrap
            self._first_pidfd = os.pidfd_open(self._first_pid)
            for kind in ("uid_map", "gid_map") if ids else ():
                lines = "".join(f"{number} {number} 1\n" for number in ids)
                Path(f"/proc/{self._first_pid}/{kind}").write_text(lines)

    def watch(
        self, deadline: float, memory_bytes: int, output_bytes: int
    ) -> Literal["timeout", "memory", "output"] | None:
        """Wait for the end of what runs inside, or for the first limit it passes, and name that.

        `deadline` is of `time.monotonic()`.
        """
        next_look = 0.0
        while self._selector.get_map():
            now = time.monotonic()
            if now >= deadline:
                return "timeout"
            if now >= next_look:
                if self._memory_bytes() > memory_bytes:
                    return "memory"
                next_look = now + LOOK_EVERY_S
            self._wait(min(deadline, next_look) - now)
            if len(self.out) + len(self.err) > output_bytes:
                return "output"
        return None

    def end(self) -> None:
        """End what is inside, all of it, and return when it is gone."""
        if self._first_pidfd is None:
            self._bwrap.kill()
        else:
            # The kernel ends every process of the sandbox with its first one, and only then lets
            # bwrap hear of it.
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first_pidfd, signal.SIGKILL)
            os.close(self._first_pidfd)
        with self._bwrap:  # closes its pipes
            try:
                self._bwrap.wait(END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._bwrap.kill()
                raise
        for line in self._status:
            self.returncode = json.loads(line).get("exit-code", self.returncode)
        self._selector.close()
        os.close(self._bwrap_pidfd)

    def _wait(self, timeout_s: float) -> None:
        """Wait for output, or the end; what has ended leaves the selector."""
        for key, _ in self._selector.select(timeout_s):
            buffer: bytearray | None = key.data  # None: not a pipe but the process
            chunk = b"" if buffer is None else os.read(key.fd, _CHUNK_BYTES)
            if buffer is None or not chunk:
                self._selector.unregister(key.fileobj)
            else:
                buffer += chunk

    def _memory_bytes(self) -> int:
        """Resident memory of all processes inside, and what their files take."""
        if self._first_pid is None:
            return 0
        root = Path(f"/proc/{self._first_pid}/root")
        return _file_bytes(root) + sum(map(_resident_bytes, _tree(self._first_pid)))


def _tree(pid: int) -> Iterator[int]:
    """A process and its descendants; in a sandbox, an orphan becomes a child of the first one."""
    yield pid
    children: list[int] = []
    with suppress(OSError):  # it ends while it is looked at
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (thread / "children").read_text().split())
    for child in children:
        yield from _tree(child)


def _file_bytes(root: Path) -> int:
    """What the files in a sandbox's /tmp take; none while its root is not there yet."""
    try:
        (root / PROGRAM.lstrip("/")).lstat()
        tmp = os.statvfs(root / "tmp")
    except OSError:
        return 0
    used = (tmp.f_blocks - tmp.f_bfree) * tmp.f_frsize
    return used + (tmp.f_files - tmp.f_ffree) * INODE_BYTES


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


@contextmanager
def file_of(data: bytes) -> Iterator[IO[bytes]]:
    """A file in memory that holds these bytes, to be read from its beginning."""
    with os.fdopen(os.memfd_create("sandbox"), "w+b") as file:
        file.write(data)
        file.seek(0)
        yield file


@contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as read_end, os.fdopen(writing, "wb") as write_end:
        yield read_end, write_end
