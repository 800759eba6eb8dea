"""How long the stages of an experiment took, out of what each has left in its directory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from actors.logs import LOGS
from evaluation.run_files import Row, read_summary

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
"""What the lines of a log begin with; the further lines of a message have none."""
Span = tuple[float, float]
"""A beginning and an end in seconds since the epoch."""


def times(run_dirs: Mapping[str, Path]) -> dict[str, Any]:
    """Seconds that stages took which have ended, `run_dirs` by name.

    Returns:
        {stages, stages_s, clock_s}. stages: by name `wall_s` of its summary: base_model (the wait
        for another stage that makes the same one included), setup, train and held_out. stages_s:
        these added up. clock_s: the time in which at least one of the stages was played, each from
        `base_model` before the first line of its driver's log to the last line; so time in which
        none was is left out, and of stages side by side none counts twice. None where a stage has
        no such log.
    """
    summaries = {name: _summary(run_dir) for name, run_dir in run_dirs.items()}
    seconds = {name: summary["wall_s"] for name, summary in summaries.items()}
    spans = [span_of(run_dirs[name], one.get("base_model", 0.0)) for name, one in seconds.items()]
    known = [span for span in spans if span is not None]
    return {
        "stages": seconds,
        "stages_s": sum(sum(one.values()) for one in seconds.values()),
        "clock_s": covered(known) if len(known) == len(spans) else None,
    }


def span_of(run_dir: Path, before_s: float) -> Span | None:
    """When a stage was played: from `before_s` before its driver's first line to the last."""
    path = run_dir / LOGS / "driver.log"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    stamped = [found[0] for found in map(STAMP.match, lines) if found]
    if not stamped:
        return None
    first, last = (datetime.fromisoformat(stamped[place]).timestamp() for place in (0, -1))
    return first - before_s, last


def covered(spans: Iterable[Span]) -> float:
    """Seconds that at least one of the spans holds."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _summary(run_dir: Path) -> Row:
    summary = read_summary(run_dir)
    assert summary is not None, "only runs that ended are timed"
    return summary
