"""Runs Python that nobody has read, such as a model's answer, in a sandbox made by bubblewrap.

Inside there are Python, its libraries and an empty /tmp; no network, no other file, process,
environment variable or user. Invariant: when a run ends, none of its processes is left.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.errors import UserError
from rewards import sandbox_init, seccomp
from rewards.sandbox_process import PROGRAM, SandboxProcess, file_of, started

Kind = Literal["passed", "failed", "timeout", "memory", "output", "crashed"]

_MIB = 1024 * 1024
_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64")
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    # Python is moved to /python; its libpython, where there is one, is looked for where it was.
    "LD_LIBRARY_PATH": "/python/lib",
    # One thread each: numpy takes as many as there are processors, each with its stack.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

_TRIAL = """
import os, time
for n in range({n}):
    try:
        child = os.fork()
    except BlockingIOError:
        print("after", n)
        break
    if child == 0:
        time.sleep(60)
"""
"""What a new sandbox is tried on: does it start, and at how many processes is its limit?"""
_TRIAL_S = 30.0


class SandboxError(RuntimeError):
    """bubblewrap failed, not the program in it: nothing is known about the program."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use."""

    wall_s: float = 10.0
    cpu_s: int = 10
    """Processor seconds of each process."""
    memory_mib: int = 512
    """Address space of each process; and memory and files of all of them together, looked at
    every 50 ms."""
    processes: int = 16
    """Processes and threads."""
    open_files: int = 64
    file_mib: int = 16
    """Size of one file."""
    tmp_mib: int = 32
    """Size of /tmp."""
    output_kib: int = 256
    """Standard output and error together."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a program.

    `kind`: passed (exit code 0), failed (another one), crashed (a signal ended it), or the limit
    that ended it: timeout, memory or output. `returncode` is None where a limit ended it.
    """

    kind: Kind
    returncode: int | None
    stdout: str
    stderr: str
    wall_s: float


class Sandbox:
    """Runs programs, each in a sandbox of its own. Thread-safe."""

    def __init__(self, limits: Limits | None = None, site_packages: bool = False) -> None:
        """Check that this machine can make sandboxes; takes a fraction of a second.

        Args:
            limits: The limits of each run; None: the defaults.
            site_packages: Whether programs may import what is installed beside this project,
                numpy for example.

        Raises:
            UserError: It cannot; the message says what to install or to permit.
        """
        self.limits = limits or Limits()
        self._mounts = [*_system_mounts(), *_packages_mount(site_packages), *_tmp(self.limits)]
        self._bwrap = _find_bwrap()
        self._filter = seccomp.filter_program(platform.machine())
        self._leaves_root = os.geteuid() == 0 and _nobody_exists()
        self._try_out()

    def run(self, program: str, stdin: str = "") -> Result:
        """Run the text of a program, with `stdin` as its standard input.

        Raises:
            SandboxError: The sandbox did not start.
        """
        return self._run(program, stdin, self.limits.wall_s)

    def _run(self, program: str, stdin: str, wall_s: float) -> Result:
        began = time.monotonic()
        try:
            with self._start(program, stdin) as process:
                ended_by = process.watch(
                    deadline=began + wall_s,
                    memory_bytes=self.limits.memory_mib * _MIB,
                    output_bytes=self.limits.output_kib * 1024,
                )
        except OSError as error:
            raise SandboxError(f"the sandbox cannot be started: {error}") from error
        out, err = (part.decode(errors="replace") for part in (process.out, process.err))
        if ended_by is None and process.returncode is None:
            raise SandboxError(f"the sandbox did not start: {err.strip() or 'no reason given'}")
        kind = ended_by or _kind(process.returncode, err)
        returncode = None if ended_by else process.returncode
        return Result(kind, returncode, out, err, time.monotonic() - began)

    def _try_out(self) -> None:
        try:
            result = self._run(_TRIAL.format(n=self.limits.processes), "", _TRIAL_S)
        except SandboxError as error:
            raise UserError(
                "this machine cannot make a sandbox for model-written code: it takes bubblewrap"
                " 0.7 or newer, not setuid, and leave to make user namespaces (sysctl"
                " user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1,"
                " kernel.apparmor_restrict_unprivileged_userns=0; in a container, seccomp and"
                f" AppArmor profiles that let it mount) ({error})"
            ) from error
        if not result.stdout:
            reason = result.stderr.strip()[-300:] or "root of the host inside"
            raise UserError(
                "the limit on processes does not hold in the sandbox for model-written code"
                f" ({result.kind}: {reason}): run as an ordinary user, or as a root that may map"
                f" user {sandbox_init.NOBODY} into its namespaces"
            )
        if result.stdout == "after 0\n":
            raise UserError(
                "the sandbox for model-written code lets its program start no process: Linux 5.14"
                " or newer counts only those in the sandbox, of which it takes 3 at least"
            )

    @contextmanager
    def _start(self, program: str, stdin: str) -> Iterator[SandboxProcess]:
        """Start a sandbox; nothing of it is left on leaving."""
        with ExitStack() as stack:
            source, rules, given = (
                stack.enter_context(file_of(data))
                for data in (_encoded(program), self._filter, _encoded(stdin))
            )
            files = (source.fileno(), rules.fileno())
            ids = (0, sandbox_init.NOBODY) if self._leaves_root else ()
            command = self._command(*files)
            yield stack.enter_context(started(command, self._inside(), files, given, ids))

    def _command(self, program_fd: int, filter_fd: int) -> list[str]:
        """The part before what runs inside."""
        nobody = str(sandbox_init.NOBODY)
        user = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
        if not self._leaves_root:
            user = ("--uid", nobody, "--gid", nobody)
        return [
            *(self._bwrap, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net"),
            *("--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox", *user),
            *("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"),
            *(word for pair in _ENVIRONMENT.items() for word in ("--setenv", *pair)),
            *self._mounts,
            *("--perms", "0444", "--ro-bind-data", str(program_fd), PROGRAM, "--remount-ro", "/"),
            *("--seccomp", str(filter_fd), "--chdir", "/tmp"),
        ]

    def _inside(self) -> list[str]:
        """What the sandbox runs: the first process, the program and its limits."""
        limits = {
            "AS": self.limits.memory_mib * _MIB,
            # The signal of the first limit tells why; a second later nothing can ignore it.
            "CPU": f"{self.limits.cpu_s}:{self.limits.cpu_s + 1}",
            "NPROC": self.limits.processes,
            "NOFILE": self.limits.open_files,
            "FSIZE": self.limits.file_mib * _MIB,
            "CORE": 0,
            "MEMLOCK": 0,
            "MSGQUEUE": 0,
        }
        return [
            *(f"/python/bin/{_PYTHON}", "-I", "-S", "/sandbox_init.py", PROGRAM),
            *(f"{name}={value}" for name, value in limits.items()),
        ]


def _find_bwrap() -> str:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UserError(
            "model-written code runs only in a sandbox, and bwrap is not on this machine: install"
            " bubblewrap (apt-get install bubblewrap, dnf install bubblewrap)"
        )
    if platform.machine() not in seccomp.machines():
        raise UserError(
            f"the sandbox for model-written code has no system-call filter for"
            f" {platform.machine()}: use one of {', '.join(seccomp.machines())}"
        )
    return bwrap


def _system_mounts() -> Iterator[str]:
    """Python, the libraries it is linked with, and nothing else that the machine holds."""
    for folder in ("/dev", "/etc", "/usr"):
        yield from ("--perms", "0755", "--dir", folder)
    for path in map(Path, _LIBRARIES):
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")
    yield from ("--ro-bind", sys.base_prefix, "/python")
    yield from ("--ro-bind", sandbox_init.__file__, "/sandbox_init.py")
    for device in ("/dev/null", "/dev/urandom"):
        yield from ("--dev-bind", device, device)


def _packages_mount(site_packages: bool) -> Iterator[str]:
    if site_packages:
        yield from ("--ro-bind", sysconfig.get_path("purelib"), sandbox_init.PACKAGES)


def _tmp(limits: Limits) -> Iterator[str]:
    """/tmp, the only place that can be written; its size is taken from memory."""
    yield from ("--perms", "1777", "--size", str(limits.tmp_mib * _MIB), "--tmpfs", "/tmp")


def _nobody_exists() -> bool:
    """Whether user and group NOBODY exist in the user namespace of this process."""
    return all(
        any(
            int(first) <= sandbox_init.NOBODY < int(first) + int(count)
            for first, _, count in map(str.split, Path(path).read_text().splitlines())
        )
        for path in ("/proc/self/uid_map", "/proc/self/gid_map")
    )


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")


def _kind(returncode: int | None, err: str) -> Kind:
    if returncode == 0:
        return "passed"
    last_line = err.rstrip().rpartition("\n")[2]
    if last_line.startswith("MemoryError"):
        return "memory"
    if returncode == 128 + signal.SIGXCPU:
        return "timeout"
    return "crashed" if returncode is not None and returncode > 128 else "failed"
