"""A run from its first line to its last: made, played, saved, summed up, ended.

`train` and `resume` end in one of these ways: the last iteration is trained (a summary and a
report are written); the run was asked to stop (a checkpoint is written); too much went wrong in
a row (a checkpoint is written, and the error says where it began); or a fault, after which the
last checkpoint is the place to go on from. In each, no process is left behind. Where a guard takes
the run back, or the learner is lost, it goes on from a checkpoint by itself, all actors new.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from pathlib import Path

from cluster.claim import claimed
from cluster.initial import initial_model, pinned
from cluster.inputs import check_prompts
from cluster.lives import Lives
from cluster.plan import check_beginning
from cluster.rundir import best_export, check_unchanged, logged, newest_export, open_run, reopen_run
from configs.errors import UserError
from configs.schema import RunConfig
from evaluation.run_files import read_summary

log = logging.getLogger(__name__)


def train(config: RunConfig) -> None:
    """Play and learn; where the run directory holds the same run, continue it."""
    # Before a directory is made that the corrected command would find taken.
    waits = check_beginning(config)
    if open_run(config):
        print(f"{config.run_dir} holds this run already: continuing it.")
    _run(config, waits)


def resume(run_dir: Path) -> None:
    """Continue a run from its last checkpoint."""
    config = reopen_run(run_dir)
    _run(config, check_beginning(config))


def export(run_dir: Path, target: Path, *, best: bool = False) -> None:
    """Copy the Hugging Face model of the newest checkpoint, or of the best, out of a run."""
    model = best_export(run_dir) if best else newest_export(run_dir)
    if target.exists():
        raise UserError(f"{target} exists already: name a folder that does not")
    try:
        shutil.copytree(model, target)
    except shutil.Error as error:
        # Its argument is a list of (source, target, reason).
        raise UserError(f"{target} cannot be written: {error.args[0][0][2]}") from error
    print(f"{target}: the model after iteration {model.parent.name}, for transformers and vLLM.")


def _run(config: RunConfig, waits: str | None) -> None:
    if read_summary(config.run_dir) is not None:
        print(f"{config.run_dir} has ended; its summary and its report are there.")
        return
    started = time.perf_counter()
    with claimed(config.run_dir) as announce, logged(config.run_dir):
        if waits is not None:
            log.warning("%s", waits)
        check_unchanged(config)
        model = initial_model(config)
        seconds = {"base_model": time.perf_counter() - started}
        if config.model.make is not None:
            check_prompts(config, model.path)
        config = pinned(config, model)
        asyncio.run(Lives(config, model, announce, seconds, started).live())
