"""The report's horizontal bars: rates with their intervals, and shares that make a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from evaluation.charts import FAINT, INK, PALETTE, Drawing, plain, svg

WIDTH_INCHES, ROW_INCHES, REST_INCHES = 4.1, 0.26, 0.3
LONGEST_LABEL = 18
"""Characters of a bar's label; the tables beside the charts have the whole name."""
OUTCOMES = {"win": PALETTE[0], "tie": "#b8c0c9", "loss": PALETTE[1]}
NARROWEST = 9.0
"""Per cent of the width from which on a share has room for its number."""


@dataclass(frozen=True)
class Bar:
    """A rate in per cent or a difference in points, its 95% interval, and what it is a mean of."""

    label: str
    value: float
    ci95: Sequence[float] | None
    colour: str
    dots: Sequence[float] = ()


def draw_rates(title: str, note: str, bars: Sequence[Bar]) -> Drawing:
    """One bar below the other, from 0 to 100 per cent, with its number on the right."""

    def draw(axes: Axes) -> None:
        for place, bar in enumerate(bars):
            _bar(axes, place, bar)
            axes.text(104, place, f"{bar.value:.1f}", va="center", clip_on=False)
        _finish(axes, [bar.label for bar in bars])
        _percent(axes)

    return Drawing(title, note, [], svg(title, _size(len(bars)), draw, repr((note, bars))))


def draw_differences(title: str, note: str, bars: Sequence[Bar]) -> Drawing:
    """Differences in points, to the left and right of 0, each with its number on the right."""
    ends = [abs(end) for bar in bars for end in (bar.value, *(bar.ci95 or ()), *bar.dots)]
    reach = 1.08 * max(1.0, *ends)

    def draw(axes: Axes) -> None:
        for place, bar in enumerate(bars):
            _bar(axes, place, bar)
            axes.text(1.08 * reach, place, f"{bar.value:+.1f}", va="center", clip_on=False)
        _finish(axes, [bar.label for bar in bars])
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.set_xlim(-reach, reach)
        axes.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))

    return Drawing(title, note, [], svg(title, _size(len(bars)), draw, repr((note, bars))))


def draw_outcomes(title: str, note: str, outcomes: Mapping[str, Mapping[str, float]]) -> Drawing:
    """Shares in per cent of `OUTCOMES` by label, one stacked bar for each."""

    def draw(axes: Axes) -> None:
        for place, shares in enumerate(outcomes.values()):
            left = 0.0
            for name, colour in OUTCOMES.items():
                _share(axes, place, left, shares[name], colour)
                left += shares[name]
        _finish(axes, list(outcomes))
        _percent(axes)

    legend = [(colour, name) for name, colour in OUTCOMES.items()]
    element = svg(title, _size(len(outcomes)), draw, repr((note, outcomes)))
    return Drawing(title, note, legend, element)


def _size(rows: int) -> tuple[float, float]:
    return WIDTH_INCHES, REST_INCHES + ROW_INCHES * rows


def _bar(axes: Axes, place: int, bar: Bar) -> None:
    axes.barh(place, bar.value, 0.62, color=bar.colour, alpha=0.55)
    if bar.ci95 is not None:
        axes.plot(bar.ci95, [place, place], color=INK, linewidth=1.1)
    axes.scatter(bar.dots, [place] * len(bar.dots), s=7, color=bar.colour, zorder=3)


def _share(axes: Axes, place: int, left: float, share: float, colour: str) -> None:
    axes.barh(place, share, 0.72, left=left, color=colour)
    if share >= NARROWEST:
        middle = left + share / 2
        ink = INK if colour == OUTCOMES["tie"] else "white"
        axes.text(middle, place, f"{share:.0f}", va="center", ha="center", color=ink, fontsize=7.5)


def _finish(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels], color=INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    plain(axes, "x")


def _percent(axes: Axes) -> None:
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 25), ["0", "25", "50", "75", "100%"])


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
