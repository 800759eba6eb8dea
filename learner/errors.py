"""What a learner can come to that is nobody else's fault."""

from __future__ import annotations


class LearnerError(RuntimeError):
    """A rank died or did not answer: a fault of the learner and not of whoever waits for it."""
