"""An experiment's figures as a Markdown table and as a chart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation.charts import FAINT, GRID, INK, running_mean
from evaluation.experiment import Floats

Curves = Mapping[str, Mapping[int, Mapping[str, Sequence[float | None]]]]
"""By method, seed and name, what `evaluation.experiment.over_time` gives."""

COLOURS = ("#9aa5b1", "#2563a8", "#d1603d", "#3f8f6b", "#8d5ba6", "#b58a1b", "#38a3a5", "#7f5539")
"""Of the methods, by their place."""
PANELS = {
    "admitted": "queries that the gate let through, share",
    "quality": "quality of query and answer, 0…7",
    "new": "queries never trained before, share",
    "v": "V, the solve rate of the queries",
    "kl_solver": "KL of the Solver, nats per token",
}
SMOOTHED = 10
"""Iterations of the running mean."""


def markdown(figures: Mapping[str, Any], missing: Sequence[str] = ()) -> str:
    """Tables of methods and tests; `missing` says what is not in them, a sentence each."""
    parts = [_methods(figures), _tests(figures["tests"])]
    if missing:
        parts.append("Not in the tables:\n\n" + "\n".join(f"- {sentence}" for sentence in missing))
    return "\n\n".join(part for part in parts if part) + "\n"


def draw(figures: Mapping[str, Any], curves: Curves, path: Path) -> None:
    """Rates of the methods by seed with their means and intervals, and curves of `PANELS`."""
    methods = figures["methods"]
    colours = dict(zip(methods, [c for _ in methods for c in COLOURS], strict=False))
    with mpl.rc_context({"font.size": 9, "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(12, 7), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3).flat
        _rates(axes[0], figures, colours)
        for place, (key, title) in enumerate(PANELS.items(), start=1):
            _curves(axes[place], curves, key, colours)
            axes[place].set_title(title, loc="left", fontsize=9)
        figure.savefig(path, dpi=130)


def _methods(figures: Mapping[str, Any]) -> str:
    methods = figures["methods"]
    families = sorted({f for one in methods.values() for s in one["seeds"] for f in s["families"]})
    rate = "win rate" if "judge" in figures else "held-out"
    head = ["method", "seeds", rate, "95% interval", "win", "tie", "loss", *families]
    rows = [
        [
            name,
            str(len(one["seeds"])),
            percent(one["mean"]),
            between(one["ci95"]),
            *(percent(_over_seeds(row[key] for row in one["seeds"])) for key in WIN_TIE_LOSS),
            *(percent(_over_seeds(_family(one["seeds"], family))) for family in families),
        ]
        for name, one in methods.items()
    ]
    return f"{_caption(figures)}\n\n{table(head, rows)}"


def _caption(figures: Mapping[str, Any]) -> str:
    if "judge" in figures:
        return (
            f"AlpacaEval against {figures['reference']}, judged by {figures['judge']}: win rate"
            " (a tie as half), win, tie and loss, and win rate by subset, in %: means over the"
            " seeds."
        )
    return (
        f"Share of {figures['n']:,} held-out problems solved, win, tie and loss against the base"
        " problem by problem, and share solved by family, in %: means over the seeds."
    )


WIN_TIE_LOSS = ("win", "tie", "loss")


def _tests(tests: Sequence[Mapping[str, Any]]) -> str:
    if not tests:
        return ""
    head = ["method", "against", "difference", "95% interval", "p", "p adjusted", "seeds"]
    rows = [
        [
            one["method"],
            one["against"],
            points(one["difference"]),
            between(one["ci95"], signed=True),
            probability(one["p"]),
            probability(one["p_adjusted"]),
            " ".join(points(seed["difference"]) for seed in one["seeds"]),
        ]
        for one in tests
    ]
    caption = (
        "Differences in percentage points, paired by seed (t-test; p adjusted after Benjamini and"
        " Hochberg over these tests)."
    )
    return f"{caption}\n\n{table(head, rows)}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    lines = [head, [":--", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def percent(value: float | None) -> str:
    """A fraction in %, "–" for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """A difference of fractions in percentage points, signed."""
    return "–" if value is None else f"{100 * value:+.1f}"


def between(ci95: Sequence[float] | None, *, signed: bool = False) -> str:
    """An interval of fractions in %."""
    if ci95 is None:
        return "–"
    return " to ".join(map(points if signed else percent, ci95))


def probability(p: float | None) -> str:
    """A p-value to two digits."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}"


def _family(seeds: Sequence[Mapping[str, Any]], family: str) -> list[float]:
    return [row["families"][family] for row in seeds if family in row["families"]]


def _over_seeds(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None


def _rates(axes: Axes, figures: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    """A bar for each method's mean with its interval, a dot for each seed."""
    methods, key = figures["methods"], "win_rate" if "judge" in figures else "heldout"
    for place, (name, one) in enumerate(methods.items()):
        if one["mean"] is None:
            continue
        axes.bar(place, 100 * one["mean"], color=colours[name], alpha=0.45, width=0.7)
        low, high = one["ci95"] or (one["mean"], one["mean"])
        axes.plot([place, place], [100 * low, 100 * high], color=INK, linewidth=1.2)
        rates = [100 * row[key] for row in one["seeds"]]
        axes.scatter([place + 0.2] * len(rates), rates, s=12, color=colours[name], zorder=3)
    axes.set_xticks(range(len(methods)), list(methods), rotation=35, ha="right")
    axes.set_ylim(0, 100)
    title = "AlpacaEval win rate, %" if "judge" in figures else "held-out problems solved, %"
    axes.set_title(title, loc="left", fontsize=9)
    _plain(axes)


def _curves(axes: Axes, curves: Curves, key: str, colours: Mapping[str, str]) -> None:
    """One line a method: the mean over its seeds, smoothed."""
    for method, by_seed in curves.items():
        values = mean_curve([one[key] for one in by_seed.values()])
        if np.isfinite(values).any():
            smooth = running_mean(values, SMOOTHED)
            axes.plot(smooth, color=colours[method], linewidth=1.5, label=method)
    axes.set_xlabel("iteration", color=FAINT)
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(frameon=False, fontsize=7, ncols=2, loc="best")
    _plain(axes)


def mean_curve(curves: Sequence[Sequence[float | None]]) -> Floats:
    """Mean over the curves at each iteration, what is None left out; NaN where all are."""
    length = max(map(len, curves), default=0)
    columns = [[c[i] for c in curves if i < len(c)] for i in range(length)]
    known = [[value for value in column if value is not None] for column in columns]
    return np.array([np.mean(column) if column else np.nan for column in known], np.float64)


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
