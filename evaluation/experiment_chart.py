"""An experiment's figures as one chart: method × family with intervals, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation.charts import FAINT, GRID, INK, running_mean
from evaluation.experiment import OVERALL, Floats
from evaluation.experiment_page import Figures, families_of

Curves = Mapping[str, Mapping[int, Mapping[str, Sequence[float | None]]]]
"""By method, seed and name, what `evaluation.over_time` gives."""
Cells = Mapping[str, Mapping[str, Any]]
"""By family, a mean and its interval."""

COLOURS = ("#9aa5b1", "#2563a8", "#d1603d", "#3f8f6b", "#8d5ba6", "#b58a1b", "#38a3a5", "#7f5539")
"""Of the methods, by their place."""
TITLES = {
    "heldout": "held-out problems solved, %, with 95% intervals",
    "win_rate": "AlpacaEval win rate, ties as half, %, with 95% intervals",
    "win_rate_ties_as_losses": "AlpacaEval win rate, ties as losses, %, with 95% intervals",
}
PANELS = {
    "admitted": "queries that the gate let through, share",
    "tasks": "trained queries that are tasks, share",
    "quality": "quality of query and answer, 0…7",
    "distinct": "different queries of an iteration, share",
    "new": "queries never trained before, share",
    "distinct_2": "different pairs of words in the queries, share",
    "self_bleu": "self-BLEU of the queries, 1: all alike",
    "novelty": "novelty of the queries against the past, 0…1",
    "v": "V, the mean reward R of the queries",
    "informative": "queries whose answers differ in R, share",
    "entropy": "entropy, nats per token",
    "kl_solver": "KL of the Solver, nats per token",
    "kl_challenger": "KL of the Challenger, nats per token",
}
"""The curves, in rows of `COLUMNS`."""
COLUMNS = 3
SMOOTHED = 10
"""Iterations of the running mean."""
WIDTH = 0.85
"""Of a group of bars, 1 being the distance between groups."""


def draw(figures: Figures, curves: Curves, path: Path) -> None:
    """A panel of method × family for each rate in `means`, and the curves of `PANELS`."""
    methods, means = figures["methods"], figures["means"]
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(methods)}
    panels = {key: title for key, title in PANELS.items() if _has_data(curves, key)}
    curve_rows = -(-len(panels) // COLUMNS)
    settings: dict[Any, Any] = {
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": GRID,
        # Names of subsets are the user's: a $ in them is a dollar.
        "text.parse_math": False,
    }
    with mpl.rc_context(settings):
        rows = len(means) + curve_rows
        figure = Figure(figsize=(15, 3.3 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(rows, COLUMNS)
        families = [OVERALL, *families_of(figures)]
        for place, (rate, by_method) in enumerate(means.items()):
            axes = figure.add_subplot(grid[place, :])
            _rates(axes, by_method, families, colours)
            _dots(axes, rate, methods, colours)
            axes.set_title(TITLES[rate], loc="left", fontsize=9)
        for place, (key, title) in enumerate(panels.items()):
            row, column = divmod(place, COLUMNS)
            axes = figure.add_subplot(grid[len(means) + row, column])
            draw_curves(axes, curves, key, colours)
            axes.set_title(title, loc="left", fontsize=9)
        figure.savefig(path, dpi=130)


def _has_data(curves: Curves, key: str) -> bool:
    seeds = (one for by_seed in curves.values() for one in by_seed.values())
    return any(value is not None for one in seeds for value in one[key])


def _rates(
    axes: Axes, by_method: Mapping[str, Cells], families: Sequence[str], colours: Mapping[str, str]
) -> None:
    """A group of bars for each family, one for each method: its mean with its interval."""
    for index, (method, cells) in enumerate(by_method.items()):
        known = [(group + offset(index, len(by_method)), cells[family])
                 for group, family in enumerate(families)
                 if family in cells and cells[family]["mean"] is not None]  # fmt: skip
        axes.bar(
            [place for place, _ in known],
            [100 * cell["mean"] for _, cell in known],
            WIDTH / len(by_method),
            color=colours[method],
            alpha=0.6,
            label=method,
        )
        for place, cell in known:
            if cell["ci95"] is not None:
                ends = [100 * end for end in cell["ci95"]]
                axes.plot([place, place], ends, color=INK, linewidth=1)
    axes.set_xticks(range(len(families)), families)
    axes.set_ylim(0, 100)
    axes.legend(
        frameon=False, fontsize=8, ncols=len(by_method), loc="lower right", bbox_to_anchor=(1, 1)
    )
    _plain(axes)


def _dots(axes: Axes, key: str, methods: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    """A dot for each seed beside the bars of all families together."""
    for index, (method, one) in enumerate(methods.items()):
        rates = [100 * row[key] for row in one["seeds"]]
        place = offset(index, len(methods)) + 0.25 * WIDTH / len(methods)
        axes.scatter([place] * len(rates), rates, s=9, color=colours[method], zorder=3)


def offset(index: int, bars: int) -> float:
    """Where one of so many bars stands, from the middle of its group."""
    return (index - (bars - 1) / 2) * WIDTH / bars


def draw_curves(axes: Axes, curves: Curves, key: str, colours: Mapping[str, str]) -> None:
    """One line a method: the mean over its seeds, smoothed."""
    lowest = 0.0
    for method, by_seed in curves.items():
        values = mean_curve([one[key] for one in by_seed.values()])
        if np.isfinite(values).any():
            smooth = running_mean(values, SMOOTHED)
            axes.plot(smooth, color=colours[method], linewidth=1.5, label=method)
            lowest = min(lowest, float(np.nanmin(smooth)))
    axes.set_xlabel("iteration", color=FAINT)
    if lowest >= 0:
        # V of a preference model, and an estimate of a KL, can be negative.
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
