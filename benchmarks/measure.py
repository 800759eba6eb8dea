"""What the benchmarks share: interleaved repeats, medians, the machine, the result file."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from configs.provenance import provenance

RESULTS = Path("benchmarks/results")
MEMORY_EVERY_S = 15.0
"""A look at the pages of twenty processes costs a fifth of a second of a core."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command's parser, with its module's docstring as the help."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def interleaved(
    runs: dict[str, Callable[[], Any]], repeats: int, warm_up: int
) -> dict[str, list[float]]:
    """Seconds of each run, taken by turns, so that a slow minute is shared by all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(warm_up + repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def figure(samples: list[float], unit: str) -> dict[str, Any]:
    """A figure with its median and all its samples."""
    return {"median": statistics.median(samples), "unit": unit, "samples": samples}


def ratio(above: list[float], below: list[float]) -> dict[str, Any]:
    """The ratio of paired samples."""
    return figure([a / b for a, b in zip(above, below, strict=True)], "ratio")


def run(command: Sequence[str], run_dir: Path) -> None:
    """Run a command to its end, and keep beside `run_dir` the most memory that its processes held.

    Raises subprocess.CalledProcessError where it fails.
    """
    kept = _kept(run_dir)
    kept.parent.mkdir(parents=True, exist_ok=True)
    process = psutil.Popen(command)
    try:
        while process.poll() is None:
            kept.write_text(str(max(peak_memory(run_dir) or 0, memory(process))), "utf-8")
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(MEMORY_EVERY_S)
    finally:
        # Interrupted by the keyboard, it writes its checkpoint.
        code = process.wait()
    if code:
        raise subprocess.CalledProcessError(code, command)


def peak_memory(run_dir: Path) -> int | None:
    """Bytes that the processes of a run held at most, None where `run` did not play it."""
    kept = _kept(run_dir)
    return int(kept.read_text("utf-8")) if kept.is_file() else None


def memory(process: psutil.Process) -> int:
    """Bytes resident in a process and all below it; a page they share is counted once (PSS)."""
    held = 0
    for one in [process, *children(process)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            held += one.memory_full_info().pss
    return held


def children(process: psutil.Process) -> list[psutil.Process]:
    """All below a process, none where it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def command() -> str:
    """The command that this process was started with; of an absolute path only the name.

    Where something lies on the machine says nothing to others.
    """
    module = f"benchmarks.{Path(sys.argv[0]).stem}"
    arguments = [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]
    return shlex.join(["python", "-m", module, *arguments])


def machine() -> dict[str, Any]:
    """What was measured on; no host name, which says nothing to others."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": _processor(), "cores": len(os.sched_getaffinity(0)), "gpus": gpus}


def machine_name() -> str:
    """A short name of the machine for the result's file."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0).lower().replace(" ", "-")
    return f"cpu-{len(os.sched_getaffinity(0))}-cores"


def write(path: Path, figures: dict[str, Any], only: Sequence[str] | None = None) -> None:
    """Write the figures with the command, the machine and the versions they were taken with.

    Where `only` some were taken, their file is another one, and the whole one stays.
    """
    path = path.with_stem("-".join([path.stem, *(only or ())]))
    path.parent.mkdir(parents=True, exist_ok=True)
    made_by = {"command": command(), "machine": machine(), "versions": provenance()}
    content = {**made_by, **figures}
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(f"written to {path}")


def _kept(run_dir: Path) -> Path:
    return run_dir.with_name(f"{run_dir.name}.memory")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
