"""Intervals against published and hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.intervals import paired_difference, wilson


def test_wilson_against_worked_numbers():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def outcomes(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.repeat([True, True, False, False], [both, lost, gained, neither])
    after = np.repeat([True, False, True, False], [both, lost, gained, neither])
    return before, after


def test_paired_difference_by_hand():
    low, high = paired_difference(*outcomes(50, 5, 20, 25))
    gained, lost, n = 20.5, 5.5, 102
    half = 1.959964 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    assert (low, high) == pytest.approx((15 / n - half, 15 / n + half))


def test_pairing_narrows_and_no_change_keeps_a_width():
    low, high = paired_difference(*outcomes(500, 10, 60, 430))
    assert high - low < 2 * 1.96 * math.sqrt(2 * 0.25 / 1000)
    low, high = paired_difference(*outcomes(50, 0, 0, 50))
    assert low < 0 < high


def test_coverage_of_the_paired_interval():
    rng = np.random.default_rng(0)
    chances = [0.5, 0.08, 0.18, 0.24]
    draws = rng.multinomial(200, chances, size=2000)
    intervals = [paired_difference(*outcomes(*draw)) for draw in draws]
    covered = np.mean([low <= 0.10 <= high for low, high in intervals])
    assert 0.935 <= covered <= 0.97


def test_outcomes_must_pair():
    with pytest.raises(ValueError, match="differ in shape"):
        paired_difference(np.ones(3, bool), np.ones(4, bool))
