"""Win rates of verdicts, overall and by subset, as one JSON object.

All rates are per cent, as on AlpacaEval's leaderboards. Two definitions are kept apart by name:
`win_rate` counts a tie as half (AlpacaEval), `win_rate_ties_as_losses` counts it as a loss, so
that a model against its own copy gets less than 50 (the paper's v3 gives 26.5 there).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.alpaca.bootstrap import bootstrap_mean
from evaluation.alpaca.instructions import ordered
from evaluation.alpaca.verdicts import DRAW, Booleans, Floats, Verdicts

Rates = dict[str, Any]

DEFINITIONS = {
    "win_rate": "mean preference, a tie counts as half (AlpacaEval)",
    "win_rate_ties_as_losses": "share of instructions won outright, a tie counts as a loss"
    " (the paper's v3)",
    "discrete_win_rate": "every verdict rounded to win, tie or loss; a tie counts as half",
    "standard_error": "of win_rate",
    "lc_standard_error": "of length_controlled_winrate, from the spread of the predicted"
    " preferences over the instructions; the fit's own uncertainty is not in it",
    "ci95": "95% bootstrap interval over instructions; null where all verdicts are the same",
    "unit": "per cent",
}


def summarise(
    verdicts: Verdicts, base: Verdicts | None = None, controlled_n: Floats | None = None
) -> Rates:
    """The rates of all verdicts that count, and of each subset.

    Args:
        verdicts: What the judge said of the evaluated model's n rows.
        base: What it said of the base against the same reference: adds `against_base`.
        controlled_n: Length-controlled preferences in [0, 1], for all n rows: adds
            `length_controlled_winrate`.
    """
    subset_n = np.array(verdicts.subset_n, dtype=object)
    found = {name: subset_n == name for name in ordered(verdicts.subset_n)}
    everything = np.ones(len(subset_n), bool)
    return {
        "model": verdicts.model,
        "reference": verdicts.reference,
        "judge": verdicts.judge,
        **_block(verdicts, everything, base, controlled_n),
        "subsets": {n: _block(verdicts, in_n, base, controlled_n) for n, in_n in found.items()},
        "n_without_subset": int((verdicts.kept_n & (subset_n == "")).sum()),
        "n_dropped": int((~verdicts.kept_n).sum()),
        "dropped": dict(verdicts.dropped),
        "notes": list(verdicts.notes),
        "definitions": DEFINITIONS,
    }


def _block(
    verdicts: Verdicts, in_n: Booleans, base: Verdicts | None, controlled_n: Floats | None
) -> Rates:
    """The rates of the rows `in_n` [n]."""
    block = rates(verdicts.preference_n[in_n & verdicts.kept_n])
    if controlled_n is not None:
        known = controlled_n[in_n & ~np.isnan(controlled_n)]
        block["length_controlled_winrate"] = _percent(known.mean()) if known.size else None
        block["lc_standard_error"] = _standard_error(known)
    if base is not None:
        block["against_base"] = difference(verdicts, base, in_n)
    return block


def rates(preference_k: Floats) -> Rates:
    """The rates of k preferences in [1, 2], as AlpacaEval defines them; null for none."""
    n = len(preference_k)
    won_k = preference_k > DRAW
    n_wins, n_lost = int(won_k.sum()), int((preference_k < DRAW).sum())
    n_draws = n - n_wins - n_lost
    return {
        "win_rate": _percent((preference_k - 1).mean()) if n else None,
        "standard_error": _standard_error(preference_k),
        "ci95_win_rate": _interval(preference_k - 1),
        "win_rate_ties_as_losses": _percent(n_wins / n) if n else None,
        "standard_error_ties_as_losses": _standard_error(won_k),
        "ci95_win_rate_ties_as_losses": _interval(won_k),
        "discrete_win_rate": _percent((n_wins + n_draws / 2) / n) if n else None,
        "n_wins": n_wins,
        "n_wins_base": n_lost,
        "n_draws": n_draws,
        "n_total": n,
    }


def difference(verdicts: Verdicts, base: Verdicts, in_n: Booleans) -> Rates:
    """How much more often the model wins than the base does, on the instructions both have.

    Points of per cent with 95% intervals, paired by instruction; `in_n` [n] limits the rows.
    """
    of_base = _by_instruction(base, base.kept_n)
    of_model = _by_instruction(verdicts, in_n & verdicts.kept_n)
    both = [text for text in of_model if text in of_base]
    model_k = np.array([of_model[text] for text in both], np.float64)
    base_k = np.array([of_base[text] for text in both], np.float64)
    halves_k = model_k - base_k
    outright_k = (model_k > DRAW).astype(np.float64) - (base_k > DRAW)
    return {
        "n_paired": len(both),
        "win_rate_difference": _percent(halves_k.mean()) if both else None,
        "ci95_win_rate_difference": _interval(halves_k),
        "win_rate_ties_as_losses_difference": _percent(outright_k.mean()) if both else None,
        "ci95_win_rate_ties_as_losses_difference": _interval(outright_k),
    }


def _by_instruction(verdicts: Verdicts, in_n: Booleans) -> dict[str, float]:
    rows = zip(verdicts.instruction_n, verdicts.preference_n, in_n, strict=True)
    return {text: float(preference) for text, preference, counts in rows if counts and text}


def _percent(share: float) -> float:
    return float(100 * share)


def _standard_error(values: Floats | Booleans) -> float | None:
    """Standard error of a mean in per cent, None for fewer than two values."""
    n = len(values)
    return _percent(values.astype(np.float64).std(ddof=1) / np.sqrt(n)) if n > 1 else None


def _interval(values: npt.NDArray[Any]) -> list[float] | None:
    ends = bootstrap_mean(values.astype(np.float64))
    return None if ends is None else [_percent(end) for end in ends]
