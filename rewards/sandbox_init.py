"""The first process of a sandbox: `python -I -S sandbox_init.py PROGRAM LIMIT=SOFT[:HARD]… LINE`.

It gives up what root it has, runs the program in a child under the limits, and takes its exit
status. It is process 1 there: nothing inside can kill it, and the kernel ends every other process
with it. It ends early when LINE, a descriptor, does: then who made the sandbox is dead. (The
signal for a parent's death is lost where a process changes its user.)
"""

from __future__ import annotations

import os
import resource
import select
import sys
import types

NOBODY = 65534
PACKAGES = "/packages"
"""Where the site-packages are, if they are let in."""


def main(program: str, limits: list[str], line: int) -> None:
    """Run the program and end as it ends; 128 + n where signal n killed it."""
    if os.getuid() == 0:
        _become_nobody()
    child = os.fork()
    if child == 0:
        _limit(limits)
        _run(program)
        return
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, line], [], [])
    if ended not in ready:
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def _become_nobody() -> None:
    """Leave root for a user that is not root outside either.

    The kernel holds root of the host to no number of processes, whatever its id is in here.
    """
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _limit(limits: list[str]) -> None:
    for limit in limits:
        name, _, values = limit.partition("=")
        soft, _, hard = values.partition(":")
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (int(soft), int(hard or soft)))


def _run(program: str) -> None:
    """Run the program as `__main__` of this process."""
    os.closerange(3, 1024)
    sys.argv = [program]
    if os.path.isdir(PACKAGES):
        sys.path.append(PACKAGES)
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    module.__dict__["__file__"] = program
    with open(program, encoding="utf-8") as file:
        source = file.read()
    exec(compile(source, program, "exec"), module.__dict__)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:-1], int(sys.argv[-1]))
