"""Configuration of the guards: limits that a run declares, and what happens beyond them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.base import Config


class GuardConfig(Config):
    """A limit on one figure of metrics.jsonl; beyond it for `patience` iterations it alarms."""

    metric: str = Field(pattern=r"^[a-z_]+(\.\w+)?$")
    """A key of a line of metrics.jsonl, for example `learner.kl_solver`, `admitted_share`,
    `diversity.duplicates` or `answer_tokens`."""
    above: float | None = None
    """The limit, where more is too much."""
    below: float | None = None
    """The limit, where less is too little."""
    patience: int = Field(default=3, ge=1)
    """Iterations in a row beyond the limit before it alarms, and again after as many more. An
    iteration without the figure (a mean of nothing, what is measured now and then) changes
    nothing; a count that is absent is 0."""
    action: Literal["log", "stop", "rollback"] = "log"
    """log: a warning in the log, the record and the metrics. stop: a checkpoint, and the run ends
    with exit code 1. rollback: the run goes on from the last checkpoint whose model played no
    iteration beyond the limit, with the settings of `set`; that one is kept beside the newest."""
    set: list[str] = Field(default=[])
    """Overrides `a.b=c` that take effect at a rollback."""

    @model_validator(mode="after")
    def _one_limit(self) -> GuardConfig:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"the guard of {self.metric} needs exactly one of above and below")
        if (self.action == "rollback") != bool(self.set):
            raise ValueError(
                f"the guard of {self.metric}: set goes with action rollback, which needs it: the"
                " same settings would lead to the same place"
            )
        return self
