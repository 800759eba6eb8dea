"""The four questions of the paper's table in miniature, answered from an experiment's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from evaluation.experiment import Floats
from evaluation.over_time import early_and_late, mean_known

SELF_PLAY = ("lsp_zero", "lsp", "lsp_learn")
RESAMPLES = 9999
WATCHED = (
    *("admitted", "tasks", "quality", "v", "informative"),
    *("distinct", "new", "distinct_2", "self_bleu", "novelty"),
)

Curves = Mapping[str, Sequence[float | None]]


def questions(
    figures: Mapping[str, Any], curves: Mapping[str, Mapping[int, Curves]]
) -> dict[str, Any]:
    """The answers, as figures; `curves` are `over_time`'s by method and seed.

    Each is whatever the seeds that have ended give; empty where none has.
    """
    methods, tests = figures["methods"], figures["tests"]
    return {
        "does_data_free_self_play_beat_the_base": [
            found for name in SELF_PLAY if (found := find(tests, name, "base"))
        ],
        "share_of_grpo_gain_recovered": {
            name: share_of_gain(methods, name) for name in SELF_PLAY if name in methods
        },
        "does_lsp_zero_degenerate": {
            name: {key: drift(curves[name], key) for key in WATCHED}
            for name in SELF_PLAY
            if name in curves
        },
        "does_self_play_add_to_grpo": find(tests, "grpo_lsp", "grpo"),
    }


def find(tests: Sequence[Mapping[str, Any]], method: str, against: str) -> dict[str, Any] | None:
    """The test of one method against another, turned round where it was made the other way."""
    for test in tests:
        if (test["method"], test["against"]) == (method, against):
            return _in_short(test, 1)
        if (test["against"], test["method"]) == (method, against):
            return _in_short(test, -1)
    return None


def share_of_gain(methods: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """(method − base) / (GRPO − base) of the means over the seeds that all three have.

    Its 95% interval is the percentiles of resampled seeds. It is None where GRPO's own mean gain
    is not above 0 in every resample, since a share of nothing says nothing.
    """
    rates = [_by_seed(methods, key) for key in ("base", "grpo", name)]
    seeds = sorted(set.intersection(*(set(one) for one in rates)))
    if not seeds:
        return None
    base, grpo, mine = (np.array([one[seed] for seed in seeds]) for one in rates)
    gain, reference = mine - base, grpo - base
    if reference.mean() <= 0:
        return {"share": None, "ci95": None, "seeds": seeds}
    share = float(gain.mean() / reference.mean())
    return {"share": share, "ci95": _bootstrap(gain, reference), "seeds": seeds}


def drift(by_seed: Mapping[int, Curves], key: str) -> dict[str, Any]:
    """A curve's mean over the first and the last fifth of the run, by seed and over the seeds."""
    seeds = {seed: early_and_late(curves[key]) for seed, curves in sorted(by_seed.items())}
    return {
        **{part: mean_known([one[part] for one in seeds.values()]) for part in ("first", "last")},
        "seeds": [{"seed": seed, **one} for seed, one in seeds.items()],
    }


def _in_short(test: Mapping[str, Any], sign: int) -> dict[str, Any]:
    names = (test["method"], test["against"])[::sign]
    ci95 = test["ci95"]
    return {
        "method": names[0],
        "against": names[1],
        "difference": sign * test["difference"],
        "ci95": None if ci95 is None else [sign * bound for bound in ci95[::sign]],
        "p": test["p"],
        "p_adjusted": test["p_adjusted"],
    }


def _by_seed(methods: Mapping[str, Any], name: str) -> dict[int, float]:
    return {row["seed"]: row["heldout"] for row in methods.get(name, {"seeds": []})["seeds"]}


def _bootstrap(gain: Floats, reference: Floats) -> list[float] | None:
    if len(gain) < 2 or reference.min() <= 0:
        return None
    result = stats.bootstrap(
        (gain, reference),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        n_resamples=RESAMPLES,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]
