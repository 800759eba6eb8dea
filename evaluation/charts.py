"""The report's curves: small charts as inline SVG, drawn by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
PALETTE = ("#2563a8", "#d1603d", "#3f8f6b", "#8d5ba6", "#b58a1b")
SIZE_INCHES = (3.3, 2.1)
SMOOTHED_SHARE = 0.05
"""Share of a run that its running mean looks back on."""
SETTINGS = {
    "svg.fonttype": "none",
    # Names of parts, methods and subsets are the user's: a $ in them is a dollar.
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}

Floats = npt.NDArray[np.float64]
Legend = list[tuple[str, str]]
"""(colour, name) of what has a name; the page writes it, where it can wrap."""


@dataclass(frozen=True)
class Chart:
    """Curves over the iterations; NaN where there is nothing to show.

    A curve has the palette's colour at its place, whether the others have data or not.
    """

    title: str
    note: str
    curves: Mapping[str, Sequence[float]]
    low: float | None = None
    high: float | None = None
    sparse: bool = False
    """Measured now and then: each point is shown, joined by lines."""
    palette: Sequence[str] = PALETTE

    @property
    def has_data(self) -> bool:
        """Whether any curve has a finite point."""
        return bool(self.known)

    @property
    def known(self) -> dict[str, tuple[str, Floats]]:
        """(colour, values) of the curves that have a finite point."""
        coloured = zip(self.curves.items(), _cycle(self.palette, len(self.curves)), strict=True)
        arrays = {name: (colour, np.asarray(raw, np.float64)) for (name, raw), colour in coloured}
        return {name: one for name, one in arrays.items() if np.isfinite(one[1]).any()}


@dataclass(frozen=True)
class Drawing:
    """A chart as the page shows it."""

    title: str
    note: str
    legend: Legend
    svg: Markup


def running_mean(values: Floats, window: int) -> Floats:
    """Mean over the last `window` points, those that are NaN left out; NaN where all are."""
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def draw_chart(chart: Chart, iterations: Sequence[int]) -> Drawing:
    """One chart; `iterations` are the places of the values."""
    numbers = np.asarray(iterations)
    element = svg(chart.title, SIZE_INCHES, lambda axes: _draw(axes, chart, numbers), repr(chart))
    legend = [(colour, name) for name, (colour, _) in chart.known.items() if name]
    return Drawing(chart.title, chart.note, legend, element)


def svg(
    title: str, size_inches: tuple[float, float], draw: Callable[[Axes], None], salt: str
) -> Markup:
    """What `draw` draws, as an <svg> element that scales with its place.

    Charts of one page need different salts: the ids of their clip paths are made of them.
    """
    settings: dict[Any, Any] = {**SETTINGS, "svg.hashsalt": salt}
    with mpl.rc_context(settings):
        figure = Figure(figsize=size_inches, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return Markup(_inline(buffer.getvalue(), title))


def plain(axes: Axes, grid: str) -> None:
    """Grid lines across one axis, without a frame or ticks."""
    axes.grid(axis="x" if grid == "x" else "y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)


def _draw(axes: Axes, chart: Chart, iterations: npt.NDArray[np.int_]) -> None:
    window = max(1, round(SMOOTHED_SHARE * len(iterations)))
    for colour, values in chart.known.values():
        if chart.sparse:
            measured = np.isfinite(values)
            axes.plot(iterations[measured], values[measured], "-o", color=colour, markersize=3)
        else:
            _draw_smoothed(axes, iterations, values, window, colour)
    axes.set_xlim(*_ends(iterations))
    largest = max(np.nanmax(values, initial=-np.inf) for _, values in chart.known.values())
    axes.set_ylim(chart.low, 1.0 if chart.low == largest == 0 else chart.high)
    axes.set_xlabel("iteration", loc="right", labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    plain(axes, "y")


def _draw_smoothed(
    axes: Axes, iterations: npt.NDArray[np.int_], values: Floats, window: int, colour: str
) -> None:
    if window > 1:
        axes.plot(iterations, values, color=colour, alpha=0.25, linewidth=0.8)
    marker = "o" if np.isfinite(values).sum() == 1 else None
    mean = running_mean(values, window)
    axes.plot(iterations, mean, color=colour, linewidth=1.7, marker=marker, markersize=3)


def _ends(iterations: npt.NDArray[np.int_]) -> tuple[float, float]:
    """The whole run, also where a curve begins late."""
    first, last = float(iterations[0]), float(iterations[-1])
    margin = max(0.5, 0.03 * (last - first))
    return first - margin, last + margin


def _cycle(palette: Sequence[str], count: int) -> list[str]:
    return [palette[place % len(palette)] for place in range(count)]


def _inline(document: str, title: str) -> str:
    """The <svg> element alone, without a fixed size, and named for screen readers."""
    element = document[document.index("<svg") :]
    head, rest = element.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(title)}">{rest}'
