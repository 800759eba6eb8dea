"""`selfplay report RUN`: a run as one HTML page that needs nothing from the network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from configs.errors import UserError
from configs.load import RESOLVED, load_resolved
from evaluation.charts import Drawing, draw_chart
from evaluation.report_curves import counted, reader, sampled, sections, timing
from evaluation.report_evaluations import read_evaluations
from evaluation.report_games import moments, spread
from evaluation.report_page import versions_of, write_page
from evaluation.run_files import Row, read_history, read_summary

REPORT = "report.html"
ALARMS_SHOWN = 50


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html and return its path. Raises UserError where there is no run."""
    config = load_resolved(run_dir)
    history = read_history(run_dir)
    if not history:
        raise UserError(f"{run_dir} has no iteration to report on yet: its metrics.jsonl is empty")
    settings = (run_dir / RESOLVED).read_text("utf-8")
    summary = read_summary(run_dir)
    done = history[-1]["iteration"] + 1
    alarms = alarms_of(history)
    return write_page(
        run_dir / REPORT,
        "report.html",
        name=run_dir.absolute().name,
        config=config,
        model=config.model.path or config.model.make,
        done=done,
        summary=summary,
        heldout=(summary or {}).get("heldout"),
        headline=headline(history),
        alarms=alarms[-ALARMS_SHOWN:],
        alarms_left_out=max(0, len(alarms) - ALARMS_SHOWN),
        rollbacks=read_rollbacks(run_dir),
        evaluations=read_evaluations(run_dir),
        sections=drawn(history),
        sampled=sum(sampled(row) for row in history),
        admitted=sum(row["admitted"] for row in history),
        rejected=counted(history, "rejected"),
        dropped=counted(history, "dropped"),
        timing=timing(history),
        moments=moments(run_dir, spread(done)),
        versions=versions_of(settings) | (summary or {}).get("versions", {}),
        settings=settings,
    )


def drawn(history: Sequence[Row]) -> dict[str, list[Drawing]]:
    """The curves that have data, by section."""
    iterations = [row["iteration"] + 1 for row in history]
    made = {
        title: [draw_chart(chart, iterations) for chart in charts if chart.has_data]
        for title, charts in sections(history).items()
    }
    return {title: drawings for title, drawings in made.items() if drawings}


def alarms_of(history: Sequence[Row]) -> list[tuple[int, str]]:
    """(iteration, sentence) of each alarm of the guards."""
    return [(row["iteration"] + 1, said) for row in history for said in row.get("alarms") or ()]


def read_rollbacks(run_dir: Path) -> list[Row]:
    """RUN/rollbacks.json: {iteration, to, reason, set} of each time a guard took the run back."""
    path = run_dir / "rollbacks.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else []


def headline(history: Sequence[Row]) -> list[tuple[str, float, float]]:
    """(name, mean over the first tenth, over the last tenth) of what matters most."""
    tenth = max(1, len(history) // 10)
    wanted = {
        "Solver's reward": "reward_solver",
        "Challenger's reward": "reward_challenger",
        "V": "v",
        "V_Q": "v_quality",
    }
    of = reader(history)
    rows = [(name, _mean(of(key)[:tenth]), _mean(of(key)[-tenth:])) for name, key in wanted.items()]
    return [row for row in rows if not math.isnan(row[1])]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
