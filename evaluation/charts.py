"""The report's curves: small charts as inline SVG, drawn by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
PALETTE = ("#2563a8", "#d1603d", "#3f8f6b", "#8d5ba6", "#b58a1b")
SIZE_INCHES = (3.3, 2.1)
SMOOTHED_SHARE = 0.05
"""Share of a run that its running mean looks back on."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chart:
    """Curves over the iterations; NaN where there is nothing to show."""

    title: str
    note: str
    curves: Mapping[str, Sequence[float]]
    low: float | None = None
    high: float | None = None

    @property
    def has_data(self) -> bool:
        """Whether any curve has a finite point."""
        return any(np.isfinite(values).any() for values in self.curves.values())


def running_mean(values: Floats, window: int) -> Floats:
    """Mean over the last `window` points, those that are NaN left out; NaN where all are."""
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def svg(chart: Chart, iterations: Sequence[int]) -> str:
    """One chart as an <svg> element that scales with its place."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": chart.title,
        "font.family": "sans-serif",
        "font.size": 8.5,
        "text.color": INK,
        "axes.edgecolor": GRID,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        _draw(figure, chart, np.asarray(iterations))
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), chart.title)


def _draw(figure: Figure, chart: Chart, iterations: npt.NDArray[np.int_]) -> None:
    axes = figure.add_subplot()
    window = max(1, round(SMOOTHED_SHARE * len(iterations)))
    drawn = [np.asarray(raw, np.float64) for raw in chart.curves.values()]
    for color, name, values in zip(PALETTE, chart.curves, drawn, strict=False):
        if not np.isfinite(values).any():
            continue
        if window > 1:
            axes.plot(iterations, values, color=color, alpha=0.25, linewidth=0.8)
        mean = running_mean(values, window)
        marker = "o" if len(iterations) == 1 else None
        axes.plot(
            iterations, mean, color=color, linewidth=1.7, label=name, marker=marker, markersize=3
        )
    largest = max(np.nanmax(values, initial=-np.inf) for values in drawn)
    axes.set_ylim(chart.low, 1.0 if chart.low == largest == 0 else chart.high)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    if any(chart.curves):
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=5,
                    borderaxespad=0, handlelength=1.2, columnspacing=1.2)  # fmt: skip


def _inline(document: str, title: str) -> str:
    """The <svg> element alone, without a fixed size, and named for screen readers."""
    element = document[document.index("<svg") :]
    head, rest = element.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{title}">{rest}'
