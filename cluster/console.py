"""What a person sees of a run: a line per iteration, a header now and then, a summary at the end.

Pure: records in, strings out. A line is at most 110 columns wide.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.record import IterationRecord

HEADER_EVERY = 25
RECENT = 10
"""Iterations whose mean time the ETA goes by."""

COLUMNS = (
    ("iteration", 12),
    ("reward", 8),
    ("reward", 8),
    ("", 8),
    ("", 7),
    ("KL", 8),
    ("KL", 8),
    ("queries", 10),
    ("", 10),
    ("", 9),
    ("time", 8),
    ("", 9),
)
BELOW = (
    "", "solver", "chall.", "V", "V_Q", "solver", "chall.", "admitted", "tokens/s", "version",
    "(s)", "ETA",
)  # fmt: skip


class Console:
    """The lines of a run of `iterations`; remembers the pace for the ETA."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self._shown = 0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def lines(self, record: IterationRecord) -> list[str]:
        """The line of one iteration, under a header where one is due."""
        self._recent.append(record.seconds["iteration"])
        left = self.iterations - record.iteration - 1
        eta = left * sum(self._recent) / len(self._recent)
        due = self._shown % HEADER_EVERY == 0
        self._shown += 1
        above = header() if due else []
        return [*above, line(record, self.iterations, eta), *_notes(record)]


def header() -> list[str]:
    """The two lines above the columns."""
    above = _row([name for name, _ in COLUMNS])
    return ["", above, _row(BELOW)]


def line(record: IterationRecord, iterations: int, eta_s: float) -> str:
    """One iteration in one line."""
    sampled = record.admitted + sum(record.rejected.values())
    return _row(
        [
            f"{record.iteration + 1}/{iterations}",
            _number(record.reward_solver),
            _number(record.reward_challenger),
            _number(record.v),
            _number(record.v_quality),
            _number(record.learner.get("kl_solver", math.nan), 4),
            _number(record.learner.get("kl_challenger", math.nan), 4),
            f"{record.admitted} of {sampled}",
            f"{record.tokens_per_second:,.0f}",
            str(record.version),
            _number(record.seconds["iteration"], 1),
            duration(eta_s),
        ]
    )


def _notes(record: IterationRecord) -> list[str]:
    """What went wrong, under the line it belongs to."""
    return [f"    {n} groups dropped and played again: {why}" for why, n in record.dropped.items()]


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return "".join(f"{c:>{width}}" for c, (_, width) in zip(cells, COLUMNS, strict=True)).rstrip()


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42s, 3m 05s, 2h 10m, 3d 4h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def summary_text(summary: Mapping[str, Any], run_dir: Path) -> str:
    """RUN/summary.json as a person reads it at the end of a run."""
    seconds, tokens = summary["wall_s"], summary["tokens"]
    spent = ", ".join(f"{name.replace('_', ' ')} {duration(s)}" for name, s in seconds.items())
    iterations = summary["iterations"]
    lines = [
        "",
        f"Done: {iterations} iterations of {summary['algorithm']}, seed {summary['seed']}.",
        "",
        *(_heldout(summary["heldout"]) if summary.get("heldout") else []),
        f"  Time        {spent}",
        f"  Tokens      {tokens['generated']:,} generated, {tokens['trained']:,} trained",
        "",
        f"  Report      {run_dir / 'report.html'}",
        f"  Model       {run_dir / 'checkpoints'}/<iteration>/hf"
        f"   (selfplay export {run_dir} DIR copies it out)",
        f"  Games       {run_dir / 'games'}   every query, answer and reward",
    ]
    return "\n".join(lines)


def _heldout(heldout: Mapping[str, Any]) -> list[str]:
    difference = 100 * heldout["difference"]
    low, high = (100 * bound for bound in heldout["ci95_difference"])
    lines = [
        f"  Solved, of {heldout['n']:,} problems that training never uses (95% intervals)",
        f"    before    {_rate(heldout['before'], heldout['ci95_before'])}",
        f"    after     {_rate(heldout['after'], heldout['ci95_after'])}",
        f"    change    {difference:+6.1f} points ({low:+.1f} to {high:+.1f}),"
        f" {_verdict(low, high)}",
    ]
    if heldout["invented_by_challenger"]:
        lines.append(
            f"    The Challenger invented {heldout['invented_by_challenger']} of them itself;"
            f" without those: {100 * heldout['after_without_invented']:.1f}% after."
        )
    unverified = heldout["unverified_before"] + heldout["unverified_after"]
    if unverified:
        lines.append(f"    The verifier hung or failed on {unverified} answers, counted as wrong.")
    if heldout["in_dataset"]:
        lines.append(
            f"    {heldout['in_dataset']} of them are in source.dataset, so training did use those."
        )
    return [*lines, ""]


def _rate(rate: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * rate:6.1f}%       ({100 * low:.1f} to {100 * high:.1f})"


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "better"
    return "worse" if high < 0 else "within chance"
