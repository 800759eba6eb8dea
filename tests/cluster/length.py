"""A verifier whose scores differ among the answers of any model."""

from __future__ import annotations


def score(query: str, answer: str, reference: str | None) -> float:
    """Return a number that depends on the answer's length alone."""
    return float(len(answer) % 5)
