"""Configuration of problems that training never uses: measured around a run, and in it."""

from __future__ import annotations

from pydantic import Field

from configs.base import Config, FunctionName


class ProblemsConfig(Config):
    """Problems that are answered greedily and verified."""

    problems: FunctionName
    """A function `(n) -> problems`, each with a `text` (the query) and a `family`, and a
    `reference` where the verifier needs one."""
    verifier: FunctionName
    """The verifier that counts an answer as right at 1.0."""
    answer_deadline_s: float = Field(default=10.0, gt=0)
    """Seconds for one answer; one that takes longer, or whose verifier crashes or raises, counts
    as wrong and as unverified."""
    n: int = Field(default=1000, ge=1)
    """How many problems."""


class HeldoutConfig(ProblemsConfig):
    """Greedy solve rate on problems that training never uses, before and after the run."""

    identity: FunctionName | None = None
    """A function `(query) -> str`: queries of one identity are the same problem. It finds the
    held-out problems that the Challenger has invented by itself. None: the words, case aside."""


class DevelopmentConfig(ProblemsConfig):
    """Greedy solve rate while the run goes on; of other problems than `heldout`, since a best
    checkpoint is chosen by them and settings are tuned on them."""

    n: int = Field(default=200, ge=1)
    """How many problems."""
    every: int = Field(default=25, ge=1)
    """Iterations from one measurement to the next."""
