"""Machines that cannot make a sandbox: refused at the start, with what to do."""

import os
import platform

import pytest

from configs.errors import UserError
from rewards import sandbox as sandbox_module
from rewards.sandbox import Limits, Sandbox, SandboxError


def fake_bwrap(monkeypatch, folder, script):
    program = folder / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return str(program)


def test_without_bubblewrap_it_refuses(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install bubblewrap"):
        Sandbox()


def test_without_namespaces_it_refuses(monkeypatch, tmp_path):
    fake_bwrap(monkeypatch, tmp_path, "echo 'bwrap: No permissions to create it' >&2; exit 1")
    with pytest.raises(UserError, match=r"user\.max_user_namespaces.*No permissions to create it"):
        Sandbox()


def test_on_another_processor_it_refuses(debian_program, monkeypatch):
    debian_program("bwrap", "bubblewrap")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="no system-call filter for riscv64"):
        Sandbox()


def test_where_the_limit_on_processes_does_not_hold_it_refuses(debian_program, monkeypatch):
    debian_program("bwrap", "bubblewrap")
    if os.geteuid() != 0:
        pytest.skip("the kernel exempts root only")
    monkeypatch.setattr(sandbox_module, "_nobody_exists", lambda: False)
    with pytest.raises(UserError, match="limit on processes does not hold"):
        Sandbox(Limits(processes=8))


def test_without_room_for_a_process_it_refuses(debian_program):
    debian_program("bwrap", "bubblewrap")
    with pytest.raises(UserError, match=r"start no process: Linux 5\.14"):
        Sandbox(Limits(processes=2))


def test_fault_of_bubblewrap_is_not_the_programs(debian_program, monkeypatch, tmp_path):
    debian_program("bwrap", "bubblewrap")
    sandbox = Sandbox(Limits(processes=8))
    sandbox._bwrap = fake_bwrap(monkeypatch, tmp_path, "echo 'bwrap: too many' >&2; exit 1")
    with pytest.raises(SandboxError, match="too many"):
        sandbox.run("print(1)")
