"""Reads what a run left in its directory: metrics.jsonl, the ledger, the summary."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Row = dict[str, Any]


def read_history(run_dir: Path) -> list[Row]:
    """The lines of RUN/metrics.jsonl, in order; a last line cut short by a crash is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_summary(run_dir: Path) -> Row | None:
    """RUN/summary.json, None while the run is not over."""
    path = run_dir / "summary.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def read_games(run_dir: Path, iterations: Iterable[int], columns: list[str]) -> list[Row]:
    """The ledger's rows of some iterations, some columns; one without a file has none."""
    files = [run_dir / "games" / f"{iteration:06d}.parquet" for iteration in iterations]
    return [
        row
        for file in files
        if file.is_file()
        for row in pq.read_table(file, columns=columns).to_pylist(maps_as_pydicts="strict")
    ]


def last_checkpoint(run_dir: Path) -> int | None:
    """The iteration of the run's newest checkpoint, None where there is none."""
    names = (path.name for path in (run_dir / "checkpoints").glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=None)


def commit_of(run_dir: Path) -> str | None:
    """The commit that played a run, out of the comment at the head of its configuration."""
    lines = (run_dir / "config.yaml").read_text("utf-8").splitlines()
    found = (line.partition(": ")[2] for line in lines if line.startswith("# git_commit"))
    return next(found, None)
