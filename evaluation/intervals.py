"""95% intervals of rates and of paired differences between rates."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Z95 = 1.959964
Booleans = npt.NDArray[np.bool_]


def wilson(right: int, n: int) -> tuple[float, float]:
    """95% interval of a rate of `right` out of `n` (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    rate, z2 = right / n, Z95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(before_n: Booleans, after_n: Booleans) -> tuple[float, float]:
    """95% interval of (rate after − rate before) on the same n problems.

    Agresti & Min 2005: Wald's interval after adding a half to each of the four outcomes, so that
    it keeps a width where few problems changed.
    """
    if before_n.shape != after_n.shape:
        raise ValueError(f"paired outcomes differ in shape: {before_n.shape} and {after_n.shape}")
    n = len(before_n) + 2
    gained = int((after_n & ~before_n).sum()) + 0.5
    lost = int((before_n & ~after_n).sum()) + 0.5
    centre = (gained - lost) / n
    half = Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)
