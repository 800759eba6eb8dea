"""95% intervals by resampling instructions: BCa bootstrap (Efron 1987), by scipy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000
BATCH = 500
"""Resamples held in memory at once."""
SEED = 0
"""The same verdicts give the same interval."""


def bootstrap_mean(values_n: Floats) -> list[float] | None:
    """95% interval [low, high] of a mean, the n values being one for each instruction.

    Verdicts on pairs of answers, and differences of two verdicts on the same instruction, are
    such values: resampling instructions keeps what was paired together.

    None for fewer than two values, or where all are the same: resampling cannot show what did not
    occur, and a width of 0 would claim certainty.
    """
    if len(values_n) < 2 or np.ptp(values_n) == 0:
        return None
    from scipy.stats import bootstrap  # noqa: PLC0415 (a second)

    found = bootstrap(
        (values_n,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=0.95,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return [float(found.low), float(found.high)]
