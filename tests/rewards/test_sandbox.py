"""The sandbox: programs that try to get out of it, to outlast it, or to use up the machine."""

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from rewards import sandbox as sandbox_module
from rewards.sandbox import Limits, Sandbox
from tests.conftest import ROOT

CPU_S = 100_000 + os.getpid()
"""In the command line of every process in a sandbox of these tests, so that they can be found."""
LIMITS = Limits(wall_s=20.0, cpu_s=CPU_S, memory_mib=128, processes=8, output_kib=64)


@pytest.fixture
def sandbox(debian_program):
    debian_program("bwrap", "bubblewrap")
    return made(LIMITS)


@cache
def made(limits):
    return Sandbox(limits)


def inside():
    """The processes that are in a sandbox of these tests."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"CPU={CPU_S}:{CPU_S + 1}".encode() in arguments:
            found.append(int(path.parent.name))
    return found


def said(sandbox, program, stdin=""):
    """What a program prints that must not fail."""
    result = sandbox.run(program, stdin)
    assert result.kind == "passed", result
    return result.stdout.strip()


def attempted(sandbox, *expressions, setup=""):
    """What became of each expression: "done", or the name of its error."""
    program = f"""
import os, socket, signal, ctypes
c = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "denied")
{setup}
for expression in {list(expressions)!r}:
    try:
        eval(expression)
        print("done")
    except Exception as error:
        print(type(error).__name__)
"""
    return said(sandbox, program).split()


def test_program_has_its_input_and_output(sandbox):
    result = sandbox.run("import sys; print(input()); print('e', file=sys.stderr)", "ünï\n")
    assert (result.kind, result.returncode) == ("passed", 0)
    assert (result.stdout, result.stderr) == ("ünï\n", "e\n")


@pytest.mark.parametrize(
    ("program", "kind", "returncode"),
    [
        ("import sys; sys.exit(3)", "failed", 3),
        ("raise ValueError", "failed", 1),
        ("not Python", "failed", 1),
        ("import os; os._exit(0)", "passed", 0),
        ("import os; os.kill(os.getpid(), 9)", "crashed", 137),
        ("import ctypes; ctypes.string_at(0)", "crashed", 139),
    ],
)
def test_ends_are_told_apart(sandbox, program, kind, returncode):
    result = sandbox.run(program)
    assert (result.kind, result.returncode) == (kind, returncode)


OUTLAST = {
    "sleeps": ("import time; time.sleep(99)", "timeout"),
    "ignores signals": (
        "import signal, time\n"
        "for n in range(1, 32):\n"
        "    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\n"
        "while True: time.sleep(99)",
        "timeout",
    ),
    "stops itself": ("import os; os.kill(os.getpid(), 19)", "timeout"),
    "closes its output": (
        "import os, time\nfor n in range(3): os.close(n)\ntime.sleep(99)",
        "timeout",
    ),
    "forks without end": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "timeout",
    ),
    "leaves a daemon": (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0: time.sleep(99)\n"
        "    os._exit(0)\n"
        "os.wait()\n",
        "passed",
    ),
    "takes memory": ("x = bytearray(1 << 30)", "memory"),
    "takes memory bit by bit": (
        "import os, time\nfor _ in range(2): os.fork()\nx = bytearray(40 << 20)\ntime.sleep(99)",
        "memory",
    ),
    "writes without end": ("while True: print('x' * 999)", "output"),
}


@pytest.mark.parametrize(("program", "kind"), OUTLAST.values(), ids=OUTLAST.keys())
def test_what_would_outlast_its_limits_is_ended(debian_program, program, kind):
    debian_program("bwrap", "bubblewrap")
    # A short wait for those that only the clock ends; the others end long before.
    limits = replace(LIMITS, wall_s=1.0) if kind == "timeout" else LIMITS
    started = time.monotonic()
    result = made(limits).run(program)
    assert result.kind == kind
    assert time.monotonic() - started < 8
    assert len(result.stdout) + len(result.stderr) < 256 * 1024
    assert inside() == []


def test_processor_time_is_limited(debian_program):
    debian_program("bwrap", "bubblewrap")
    result = made(Limits(wall_s=20.0, cpu_s=1)).run("while True: pass")
    assert (result.kind, result.returncode) == ("timeout", 128 + signal.SIGXCPU)


def test_processes_and_threads_are_limited(sandbox):
    program = """
import os, threading, time
n = 0
try:
    while True:
        if n % 2 and os.fork() == 0:
            time.sleep(99)
        if n % 2 == 0:
            threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
        n += 1
except (OSError, RuntimeError):
    print(n, flush=True)
    os._exit(0)
"""
    assert int(said(sandbox, program)) == LIMITS.processes - 2  # the first process, the program


def test_address_space_is_limited(sandbox):
    reserve = "__import__('mmap').mmap(-1, {} << 20)"
    sizes = (LIMITS.memory_mib // 2, LIMITS.memory_mib)
    assert attempted(sandbox, *map(reserve.format, sizes)) == ["done", "OSError"]


def test_files_are_limited(sandbox):
    assert attempted(
        sandbox,
        "open('/tmp/large', 'wb').write(bytes(20 << 20))",  # Limits.file_mib is 16
        "[open(f'/tmp/{n}', 'wb').write(bytes(8 << 20)) for n in range(5)]",  # tmp_mib 32
        "[open(f'/tmp/{n}') for n in [0] * 99 for f in [open('/dev/null')] if not kept.append(f)]",
        setup="kept = []",
    ) == ["OSError", "OSError", "OSError"]


def test_memory_of_no_process_is_denied(sandbox):
    expressions = [
        "os.memfd_create('x')",
        "checked(c.shmget(0, 1 << 20, 0o1600))",
        "checked(c.msgget(0, 0o1600))",
    ]
    assert attempted(sandbox, *expressions) == ["PermissionError"] * 3


def test_network_is_out_of_reach(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        name = f"\0sandbox-{os.getpid()}"
        local.bind(name)
        local.listen()
        address = server.getsockname()
        assert attempted(
            sandbox,
            f"socket.create_connection({address!r}, 1)",
            "socket.create_connection(('192.0.2.1', 80), 1)",
            "socket.getaddrinfo('example.com', 80)",
            f"socket.socket(socket.AF_UNIX).connect({name!r})",
            "socket.socket(socket.AF_VSOCK)",
            "socket.socket(socket.AF_NETLINK)",
        ) == [
            *("ConnectionRefusedError", "OSError", "gaierror", "ConnectionRefusedError"),
            *("PermissionError", "PermissionError"),
        ]
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_nothing_is_written_outside(sandbox, tmp_path):
    there = ["/", "/usr/lib", "/python", "/dev", "/etc"]
    absent = [str(Path.home()), str(ROOT), str(tmp_path), "/proc", "/sys", "/run", "/var/tmp"]
    writes = [f"open({place + '/got-out'!r}, 'w')" for place in there + absent]
    # OSError: the file system is read-only, whoever its files belong to.
    assert attempted(sandbox, *writes) == (
        ["OSError"] * len(there) + ["FileNotFoundError"] * len(absent)
    )
    assert not any(Path(place, "got-out").exists() for place in there + absent)


def test_mounts_and_devices_cannot_be_changed(sandbox):
    outcomes = attempted(
        sandbox,
        "open('/program.py', 'a')",
        "open('/sandbox_init.py', 'a')",
        "os.unlink('/program.py')",
        "os.mknod('/tmp/disk', 0o60666, os.makedev(254, 0))",
        "checked(c.mount(b'none', b'/usr', b'tmpfs', 0, 0))",
        "checked(c.umount(b'/usr/lib'))",
    )
    assert set(outcomes) <= {"PermissionError", "OSError"}


def test_tmp_is_private_and_forgotten(sandbox):
    name = f"/tmp/selfplay-sandbox-{os.getpid()}"
    assert said(sandbox, f"open({name!r}, 'w').write('x'); print(open({name!r}).read())") == "x"
    assert not Path(name).exists()
    assert attempted(sandbox, f"open({name!r})") == ["FileNotFoundError"]


def test_nothing_is_read_from_outside(sandbox, tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPLAY_SECRET", "secret")
    (tmp_path / "secret").write_text("secret")
    paths = [tmp_path / "secret", Path.home(), ROOT / "pyproject.toml", "/etc/passwd", "/proc/self"]
    paths += [f"/proc/{os.getpid()}/environ", "/proc/1/environ", "/sys", "/run", "/var", "/root"]
    assert attempted(sandbox, *(f"os.stat({str(path)!r})" for path in paths)) == (
        ["FileNotFoundError"] * len(paths)
    )
    environment = said(sandbox, "import os; print(dict(os.environ))")
    assert "secret" not in environment
    assert set(eval(environment)) <= {*sandbox_module._ENVIRONMENT, "PWD", "LC_CTYPE"}
    seen = said(sandbox, "import os; print(*sorted(os.listdir('/')))").split()
    assert set(seen) <= {
        *("dev", "etc", "lib", "lib32", "lib64", "program.py", "python"),
        *("sandbox_init.py", "tmp", "usr"),
    }


def test_no_descriptor_of_the_maker_is_inherited(sandbox):
    program = """
import os
for n in range(64):
    try:
        os.fstat(n)
        print(n)
    except OSError:
        pass
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.set_inheritable(server.fileno(), True)
        assert said(sandbox, program).split() == ["0", "1", "2"]


def test_other_processes_are_out_of_reach(sandbox):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        outcomes = attempted(
            sandbox,
            f"os.kill({victim.pid}, 9)",
            f"os.kill({os.getpid()}, 0)",
            f"os.kill(-{os.getpgid(0)}, 9)",
            "os.kill(-1, 9)",
            f"os.pidfd_open({victim.pid})",
            f"checked(c.ptrace(16, {victim.pid}, 0, 0))",
        )
        assert outcomes == ["ProcessLookupError"] * 5 + ["PermissionError"]
        assert victim.poll() is None
        victim.kill()


def test_first_process_inside_cannot_be_killed(sandbox):
    program = """
import os, signal
for n in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
    os.kill(os.getppid(), n)
print(os.getppid(), "lives")
"""
    assert said(sandbox, program) == "1 lives"


def test_it_is_no_user_with_rights(sandbox):
    program = """
import os
print(os.getresuid(), os.getresgid(), os.getgroups())
for change in (os.setuid, os.setgid):
    try:
        change(0)
    except OSError:
        print("denied")
"""
    ids = "(65534, 65534, 65534)"
    shown = said(sandbox, program).splitlines()
    assert shown[0].startswith(f"{ids} {ids}")
    assert shown[1:] == ["denied", "denied"]


def test_no_new_namespaces(sandbox):
    clone = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    new_user, child_signal = 0x10000000, signal.SIGCHLD
    assert attempted(
        sandbox,
        f"checked(c.unshare({new_user}))",
        f"checked(c.syscall({clone}, {new_user} | {int(child_signal)}, 0, 0, 0, 0))",
    ) == ["PermissionError", "PermissionError"]


def test_subprocesses_work(sandbox):
    program = """
import subprocess, sys
print(subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout)
"""
    assert said(sandbox, program) == "42"


def test_many_at_once_do_not_meet(sandbox):
    program = "n = input(); open('/tmp/n', 'x').write(n); print(open('/tmp/n').read())"
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda n: said(sandbox, program, str(n)), range(16)))
    assert results == [str(n) for n in range(16)]
    assert inside() == []


def test_it_ends_with_its_maker(sandbox):
    maker = f"""
from rewards.sandbox import Limits, Sandbox
sandbox = Sandbox(Limits(wall_s=60, cpu_s={CPU_S}))
print("made", flush=True)
sandbox.run("import time; time.sleep(60)")
"""
    command = [sys.executable, "-c", maker]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        wait_until(lambda: len(inside()) == 3, "bwrap, the first process and the program")
        process.kill()
    wait_until(lambda: not inside(), "the end of the sandbox with its maker")


def wait_until(happens, what):
    deadline = time.monotonic() + 10
    while not happens():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def test_installed_packages_only_when_asked_for(debian_program, sandbox):
    debian_program("bwrap", "bubblewrap")
    assert sandbox.run("import numpy").kind == "failed"
    import numpy

    roomy = Sandbox(Limits(memory_mib=1024), site_packages=True)
    assert said(roomy, "import numpy; print(numpy.__version__)") == numpy.__version__
