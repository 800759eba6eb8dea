"""The system-call filter of the sandbox: what namespaces and limits leave open.

Namespaces do not cover virtual-machine sockets, keys and io_uring; memory of System V and memfd
belongs to no process, so no limit of a process counts it. Everything else is allowed.
"""

from __future__ import annotations

import errno
import struct

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000  # <linux/seccomp.h>
# Offsets in struct seccomp_data; of an argument, the low half on a little-endian machine.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16

_X32_BIT = 0x40000000
"""System calls of the x32 ABI, which x86-64 kernels may also take."""
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6: the ones that the network namespace isolates."""

# (x86-64, arm64): <asm/unistd_64.h>, <asm-generic/unistd.h>.
_DENIED = {
    # Memory that no limit of a process counts.
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # Reaching into other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    # New namespaces, and with them the right to mount.
    "unshare": (272, 97),
    "setns": (308, 268),
    # What is shared with the host, or has been the way to break its kernel.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Name of the machine -> (column above, AUDIT_ARCH of <linux/audit.h>)."""


def machines() -> tuple[str, ...]:
    """The machines, as `platform.machine()` names them, that there is a filter for."""
    return tuple(_MACHINES)


def filter_program(machine: str) -> bytes:
    """Return the filter for one of `machines()`, in the form that the kernel loads.

    A denied call fails with EPERM; clone3, whose flags a filter cannot read, with ENOSYS, after
    which the C library takes clone.
    """
    column, architecture = _MACHINES[machine]
    denied = _returning(_ERROR | errno.EPERM)
    steps = [_loading(_ARCHITECTURE), _unless_equal(architecture), _returning(_KILL)]
    steps.append(_loading(_NUMBER))
    steps += [_step(_JUMP_AT_LEAST, _X32_BIT, 0, 1), denied]
    for numbers in _DENIED.values():
        steps += [_if_equal(numbers[column]), denied]
    steps += [_if_equal(_CLONE3[column]), _returning(_ERROR | errno.ENOSYS)]
    steps += [_step(_JUMP_EQUAL, _CLONE[column], 0, 4), _loading(_FIRST_ARGUMENT)]
    steps += [_step(_JUMP_IF_SET, _NEW_NAMESPACES, 0, 1), denied, _returning(_ALLOW)]
    steps += [_unless_equal(_SOCKET[column]), _returning(_ALLOW), _loading(_FIRST_ARGUMENT)]
    for family in _FAMILIES:
        steps += [_if_equal(family), _returning(_ALLOW)]
    return b"".join([*steps, denied])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One `struct sock_filter`; the jumps are numbers of steps to leave out."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _loading(offset: int) -> bytes:
    return _step(_LOAD, offset)


def _returning(action: int) -> bytes:
    return _step(_RETURN, action)


def _if_equal(value: int) -> bytes:
    """The next step only where the loaded value is this one."""
    return _step(_JUMP_EQUAL, value, 0, 1)


def _unless_equal(value: int) -> bytes:
    return _step(_JUMP_EQUAL, value, 1, 0)
