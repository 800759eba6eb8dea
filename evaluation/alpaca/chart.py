"""A chart of win rates: win, tie and loss by subset, and beside it the paper's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs.errors import naming
from evaluation.alpaca.rates import Rates
from evaluation.charts import GRID, INK, PALETTE

OUTCOMES = (("n_wins", "win", "#2563a8"), ("n_draws", "tie", "#b8c0c9"),
            ("n_wins_base", "loss", "#d1603d"))  # fmt: skip
WIDTH = 0.8
"""Of a group of bars, 1 being the distance between groups."""


def draw(results: Mapping[str, Rates], path: Path) -> None:
    """Draw results by the name of their model.

    One panel of win, tie and loss for each model; the last panel has the paper's layout: the win
    rate by subset, ties counted as losses, one bar for each model, with 95% intervals.
    """
    with mpl.rc_context({"font.size": 9, "axes.edgecolor": GRID, "text.color": INK}):
        figure = Figure(figsize=(11, 3.2 * ((len(results) + 2) // 2)), layout="constrained")
        rows = (len(results) + 2) // 2
        panels = list(figure.subplots(rows, 2, squeeze=False).flat)
        for axes, (name, result) in zip(panels, results.items(), strict=False):
            draw_outcomes(axes, name, result)
        draw_win_rates(panels[len(results)], results)
        for axes in panels[len(results) + 1 :]:
            axes.set_visible(False)
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=130)


def draw_outcomes(axes: Axes, name: str, result: Rates) -> None:
    """Win, tie and loss of one model, overall and by subset, per cent of the verdicts."""
    blocks = _blocks(result)
    width = WIDTH / len(OUTCOMES)
    for place, (key, label, colour) in enumerate(OUTCOMES):
        shares = [100 * block[key] / max(1, block["n_total"]) for block in blocks.values()]
        bars = axes.bar(_places(len(blocks), place, len(OUTCOMES)), shares, width,
                        color=colour, label=label)  # fmt: skip
        axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
    _finish(axes, list(blocks), f"{name} against {result['reference'] or 'the reference'}, %")


def draw_win_rates(axes: Axes, results: Mapping[str, Rates]) -> None:
    """The paper's layout: win rate by subset, ties as losses, with 95% intervals."""
    labels: list[str] = []
    for place, (name, result) in enumerate(results.items()):
        blocks = _blocks(result)
        labels = labels or list(blocks)
        found = [blocks.get(label, {}) for label in labels]
        rates = [block.get("win_rate_ties_as_losses") or 0.0 for block in found]
        ends = [block.get("ci95_win_rate_ties_as_losses") for block in found]
        below = [rate - end[0] if end else 0.0 for rate, end in zip(rates, ends, strict=True)]
        above = [end[1] - rate if end else 0.0 for rate, end in zip(rates, ends, strict=True)]
        axes.bar(_places(len(labels), place, len(results)), rates, WIDTH / len(results),
                 color=PALETTE[place % len(PALETTE)], label=name,
                 yerr=[below, above], ecolor=INK, error_kw={"lw": 1, "capsize": 2})  # fmt: skip
    _finish(axes, labels, "win rate, ties as losses (the paper's v3), %")


def _blocks(result: Rates) -> dict[str, Rates]:
    return {"overall": result, **result["subsets"]}


def _places(groups: int, place: int, bars: int) -> list[float]:
    """Where the bars of one kind stand, centred around their groups."""
    return [group + (place - (bars - 1) / 2) * WIDTH / bars for group in range(groups)]


def _finish(axes: Axes, labels: Sequence[str], title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xticks(range(len(labels)), [label.replace("_", "\n") for label in labels])
    axes.tick_params(length=0)
    axes.set_ylim(0, 120)
    axes.set_yticks(range(0, 101, 20))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=3, loc="upper right", fontsize=8)
