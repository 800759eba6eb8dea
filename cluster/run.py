"""A run from its first line to its last: made, played, saved, summed up, ended.

`train` and `resume` end in one of these ways: the last iteration is trained (a summary and a
report are written); the run was asked to stop (a checkpoint is written); too much went wrong in
a row (a checkpoint is written, and the error says where it began); or a fault, after which the
last checkpoint is the place to go on from. In each, no process is left behind. Where a guard takes
the run back, or the learner is lost, it goes on from a checkpoint by itself, all actors new.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray

from cluster.claim import Announce, claimed
from cluster.faults import Streak
from cluster.initial import InitialModel, initial_model, pinned
from cluster.inputs import check_prompts
from cluster.plan import make_plan, nodes_from, ray_resources, this_machine
from cluster.playing import Playing
from cluster.rollback import RollBackError, roll_back, settings_now
from cluster.rundir import best_export, check_unchanged, logged, newest_export, open_run, reopen_run
from cluster.signals import answering
from cluster.wiring import wire
from configs.errors import UserError
from configs.schema import RunConfig
from evaluation.run_files import read_summary
from learner.group import LearnerError

log = logging.getLogger(__name__)

RAY_STARTS = 3
"""Tries to start a Ray of our own."""


def train(config: RunConfig) -> None:
    """Play and learn; where the run directory holds the same run, continue it."""
    # Before a directory is made that the corrected command would find taken.
    make_plan(config, nodes_from(None)[1])
    if open_run(config):
        print(f"{config.run_dir} holds this run already: continuing it.")
    _run(config)


def resume(run_dir: Path) -> None:
    """Continue a run from its last checkpoint."""
    config = reopen_run(run_dir)
    make_plan(config, nodes_from(None)[1])
    _run(config)


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


def _run(config: RunConfig) -> None:
    if read_summary(config.run_dir) is not None:
        print(f"{config.run_dir} has ended; its summary and its report are there.")
        return
    started = time.perf_counter()
    with claimed(config.run_dir) as announce, logged(config.run_dir):
        check_unchanged(config)
        model = initial_model(config)
        seconds = {"base_model": time.perf_counter() - started}
        if config.model.make is not None:
            check_prompts(config, model.path)
        config = pinned(config, model)
        losses = Streak(
            "losses of the learner without a checkpoint between them",
            "faults.learner_losses",
            config.faults.learner_losses,
        )
        while _goes_on(settings_now(config), model, announce, losses, seconds, started):
            started, seconds = time.perf_counter(), {"base_model": 0.0}


def _goes_on(
    config: RunConfig,
    model: InitialModel,
    announce: Announce,
    losses: Streak,
    seconds: dict[str, float],
    started: float,
) -> bool:
    """Play on from the last checkpoint; whether the run goes on from a checkpoint after that."""
    playing = Playing(config, wire(config, model.path), model.identity, seconds, started)
    began_with = playing.store.latest()
    try:
        asyncio.run(_play(playing, announce))
    except RollBackError as back:
        print(roll_back(config, back.alarm, playing.iteration))
        return True
    except LearnerError as error:
        if playing.game is None and not losses.count:
            raise  # It has never run: that is no loss, and would not be there the next time.
        if playing.store.latest() != began_with:
            losses.good()
        losses.bad(f"that of iteration {playing.iteration}: {error}")
        log.warning("%s; all actors start again, from the last checkpoint", error)
        return True
    return False


def connect() -> None:
    """Connect to the cluster this job runs on, or start a Ray of our own on this machine."""
    # Ray's workers import the project by its folder's path.
    environment = {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": environment},
    }
    if "RAY_ADDRESS" not in os.environ:
        # What the plan counted, which Ray may count otherwise.
        options |= {"address": "local", "include_dashboard": False}
        options |= ray_resources(this_machine())
    before = signal.getsignal(signal.SIGTERM)
    try:
        _init(options)
    finally:
        # Ray's own handler would end the process on the spot.
        signal.signal(signal.SIGTERM, before)


def _init(options: dict[str, Any]) -> None:
    """Start or reach Ray; a start is tried again, since Ray gives parts of its own only 15 s."""
    for left in reversed(range(RAY_STARTS)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
            log.warning("Ray did not start in its time, as on a machine under load: trying again")


async def _play(playing: Playing, announce: Announce) -> None:
    """Start the actors, play, and end the actors, whatever happens."""
    main = asyncio.current_task()
    assert main is not None

    def asked_to_stop(number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            # The terminal is gone, and printing to it would end the run before it is saved.
            sys.stdout = sys.stderr = io.StringIO()
        # The second time, or before there is a game to save: at once.
        if not playing.ask_to_stop():
            main.cancel()

    with answering(asked_to_stop) as ignore:
        try:
            connect()
            playing.control.start()
            announce(ray.get_runtime_context().gcs_address, playing.control.name)
            await playing.play()
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            ignore()
            await playing.control.stop()
            await playing.wired.stop()
            playing.close()
            ray.shutdown()
