"""An experiment's figures as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.experiment import OVERALL

Figures = Mapping[str, Any]
"""What `evaluation.experiment.compare` or `evaluation.experiment_judged.compare_judged` gives."""

RATES = {
    "heldout": "held-out",
    "win_rate": "ties as half",
    "win_rate_ties_as_losses": "ties as losses",
}
"""Names of the rates in `means`."""
TESTS = {
    "tests": "win rate with a tie as half",
    "tests_ties_as_losses": "win rate with a tie as a loss",
}
"""The tests of judged methods, and what they are of."""
WIN_TIE_LOSS = ("win", "tie", "loss")


def markdown(figures: Figures, missing: Sequence[str] = ()) -> str:
    """Tables of methods and tests; `missing` says what is not in them, a sentence each."""
    parts = [_methods(figures), *_by_family(figures), *_all_tests(figures)]
    if figures.get("notes"):
        parts.append(_listed("To be known of these figures:", figures["notes"]))
    if missing:
        parts.append(_listed("Not in the tables:", missing))
    return "\n\n".join(parts) + "\n"


def is_judged(figures: Figures) -> bool:
    """Whether the figures are AlpacaEval's, not those of held-out problems."""
    return "judge" in figures


def outcomes(seeds: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Win, tie and loss as means over the seeds, None without a seed."""
    return {
        key: float(np.mean([row[key] for row in seeds])) if seeds else None for key in WIN_TIE_LOSS
    }


def families_of(figures: Figures) -> list[str]:
    """The families of problems, or subsets of instructions, that any method has."""
    each = [cells for methods in figures["means"].values() for cells in methods.values()]
    return [name for name in dict.fromkeys(n for cells in each for n in cells) if name != OVERALL]


# --- methods ---


def _methods(figures: Figures) -> str:
    means = figures["means"]
    rates = [cell for rate in means for cell in (RATES[rate], "95% interval")]
    rows = [
        [
            name,
            str(len(one["seeds"])),
            *(cell for rate in means for cell in _mean_and_ends(means[rate][name][OVERALL])),
            *(percent(share) for share in outcomes(one["seeds"]).values()),
        ]
        for name, one in figures["methods"].items()
    ]
    return f"{_caption(figures)}\n\n{table(['method', 'seeds', *rates, *WIN_TIE_LOSS], rows)}"


def _mean_and_ends(cell: Mapping[str, Any]) -> tuple[str, str]:
    return percent(cell["mean"]), between(cell["ci95"])


def _caption(figures: Figures) -> str:
    if is_judged(figures):
        return (
            f"AlpacaEval against {figures['reference']}, judged by {figures['judge']},"
            f" {figures['n']:,} instructions: win rate with a tie as half (AlpacaEval) and with a"
            " tie as a loss (the paper's v3), then win, tie and loss, in %: means over the seeds,"
            " intervals by Student's t over the seeds, cut off at 0 and 100, of a single seed by"
            " bootstrap over the instructions."
        )
    return (
        f"Share of {figures['n']:,} held-out problems solved, then win, tie and loss against the"
        " base problem by problem, in %: means over the seeds, intervals by Student's t over the"
        " seeds, cut off at 0 and 100, of a single seed by Wilson over the problems."
    )


def _by_family(figures: Figures) -> list[str]:
    """A table for each rate: method × family, each cell a mean with its interval."""
    families = families_of(figures)
    if not families:
        return []
    return [
        f"{_family_caption(figures, rate)}\n\n"
        + table(
            ["method", *families],
            [[name, *(_cell(cells.get(f)) for f in families)] for name, cells in methods.items()],
        )
        for rate, methods in figures["means"].items()
    ]


def _family_caption(figures: Figures, rate: str) -> str:
    if is_judged(figures):
        return f"Win rate by subset, {RATES[rate]}, in %, intervals as above."
    return "Share solved by family, in %, intervals as above."


def _cell(cell: Mapping[str, Any] | None) -> str:
    """A mean with its interval in brackets, "–" without a mean."""
    if cell is None or cell["mean"] is None:
        return "–"
    ends = cell["ci95"]
    return percent(cell["mean"]) + (f" ({between(ends)})" if ends is not None else "")


# --- tests ---


def _all_tests(figures: Figures) -> list[str]:
    if not is_judged(figures):
        return _tests(figures["tests"], "")
    return [part for key, what in TESTS.items() for part in _tests(figures[key], f" of the {what}")]


def _tests(tests: Sequence[Mapping[str, Any]], what: str) -> list[str]:
    """A table of the tests over seeds, where there is more than one, and one of those within."""
    parts = [_over_seeds(tests, what)] if any(len(one["seeds"]) > 1 for one in tests) else []
    return [*parts, _within_seeds(tests, what)] if tests else []


def _over_seeds(tests: Sequence[Mapping[str, Any]], what: str) -> str:
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
        f"Over the seeds: differences{what} in percentage points, paired by seed (t-test; p"
        " adjusted after Benjamini and Hochberg over these tests)."
    )
    return f"{caption}\n\n{table(head, rows)}"


def _within_seeds(tests: Sequence[Mapping[str, Any]], what: str) -> str:
    """Method × seed: what one pair of models differs in, which says nothing of other seeds."""
    numbers = sorted({row["seed"] for one in tests for row in one["seeds"]})
    rows = []
    for one in tests:
        by_seed = {row["seed"]: row for row in one["seeds"]}
        cells = [_within(by_seed[number]) if number in by_seed else "–" for number in numbers]
        rows.append([one["method"], one["against"], *cells])
    how = (
        "over the instructions and not over seeds (bootstrap interval and t-test, paired by"
        " instruction)"
        if what
        else "over the problems and not over seeds (Agresti and Min's interval, McNemar's exact p)"
    )
    caption = (
        f"Within each seed: differences{what} in percentage points, {how}; p adjusted over the"
        " tests of the seed."
    )
    return f"{caption}\n\n{table(['method', 'against', *(f'seed {n}' for n in numbers)], rows)}"


def _within(row: Mapping[str, Any]) -> str:
    ends = f" ({between(row['ci95'], signed=True)})" if row["ci95"] is not None else ""
    return f"{points(row['difference'])}{ends}, p {probability(row['p_adjusted'])}"


# --- how figures are written ---


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


def _listed(caption: str, sentences: Iterable[str]) -> str:
    return f"{caption}\n\n" + "\n".join(f"- {sentence}" for sentence in sentences)
