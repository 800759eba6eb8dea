"""Rollbacks: what a guard has taken back of a run, and the settings that hold since then.

RUN/rollbacks.json has one entry for each, so that the run's own configuration stays what its user
wrote, and `train` and `resume` go on from there alike.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from cluster.guards import Alarm, last_good
from cluster.rundir import CHECKPOINTS
from configs.load import changed
from configs.schema import RunConfig
from learner.checkpoint import CheckpointStore, write_durably

log = logging.getLogger(__name__)

ROLLBACKS = "rollbacks.json"


class RollBackError(Exception):
    """A guard wants the run to go on from an earlier checkpoint, with other settings."""

    def __init__(self, alarm: Alarm) -> None:
        super().__init__(str(alarm))
        self.alarm = alarm


def rollbacks_of(run_dir: Path) -> list[dict[str, Any]]:
    """The rollbacks of a run so far, each {iteration, to, reason, set}."""
    path = run_dir / ROLLBACKS
    return json.loads(path.read_text("utf-8")) if path.is_file() else []


def settings_now(config: RunConfig) -> RunConfig:
    """The run's configuration with what its rollbacks have changed."""
    for rollback in rollbacks_of(config.run_dir):
        config = changed(config, rollback["set"], f"{config.run_dir / ROLLBACKS}")
    return config


def roll_back(config: RunConfig, alarm: Alarm, iteration: int) -> str:
    """Take the run back from `iteration` to the last good checkpoint; says what it did."""
    store = CheckpointStore(config.run_dir / CHECKPOINTS, config.checkpoint.keep)
    folder = store.roll_back(last_good(alarm.began, config.staleness))
    to = int(folder.name) if folder is not None else 0
    entry = {"iteration": iteration, "to": to, "reason": str(alarm), "set": alarm.guard.set}
    # After the checkpoints: a crash in between plays the same again, up to the same alarm.
    entries = [*rollbacks_of(config.run_dir), entry]
    write_durably(config.run_dir / ROLLBACKS, json.dumps(entries, indent=1))
    said = f"Back to iteration {to} with {' '.join(alarm.guard.set)}, because {alarm}."
    log.info("%s", said)
    return said
