"""A run from its first line to its last: made, played, saved, summed up, ended.

`train` and `resume` end in one of these ways: the last iteration is trained (a summary and a
report are written); the run was asked to stop (a checkpoint is written); too much went wrong in
a row (a checkpoint is written, and the error says where it began); or a fault, after which the
last checkpoint is the place to go on from. In each, no process is left behind.
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

from cluster.claim import claimed
from cluster.initial import initial_model, pinned
from cluster.inputs import check_prompts
from cluster.plan import make_plan, nodes_from, ray_resources, this_machine
from cluster.playing import Playing
from cluster.rundir import check_unchanged, logged, open_run, reopen_run
from cluster.wiring import wire
from configs.errors import UserError
from configs.schema import RunConfig
from evaluation.run_files import read_summary
from learner.checkpoint import CheckpointStore, read_state

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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


def export(run_dir: Path, target: Path) -> None:
    """Copy the newest checkpoint's Hugging Face model out of a run."""
    config = reopen_run(run_dir)
    folder = CheckpointStore(run_dir / "checkpoints", config.checkpoint.keep).latest()
    if folder is None:
        raise UserError(f"{run_dir} has no checkpoint yet")
    read_state(folder)
    if target.exists():
        raise UserError(f"{target} exists already: name a folder that does not")
    try:
        shutil.copytree(folder / "hf", target)
    except shutil.Error as error:
        # Its argument is a list of (source, target, reason).
        raise UserError(f"{target} cannot be written: {error.args[0][0][2]}") from error
    print(f"{target}: the model after iteration {folder.name}, for transformers and vLLM.")


def _run(config: RunConfig) -> None:
    if read_summary(config.run_dir) is not None:
        print(f"{config.run_dir} has ended; its summary and its report are there.")
        return
    started = time.perf_counter()
    with claimed(config.run_dir), logged(config.run_dir):
        check_unchanged(config)
        model = initial_model(config)
        seconds = {"base_model": time.perf_counter() - started}
        if config.model.make is not None:
            check_prompts(config, model.path)
        config = pinned(config, model)
        playing = Playing(config, wire(config, model.path), model.identity, seconds, started)
        connect()
        try:
            asyncio.run(_play(playing))
        finally:
            ray.shutdown()


def connect() -> None:
    """Connect to the cluster this job runs on, or start a Ray of our own on this machine."""
    # Ray's workers import the project by its folder's path.
    environment = {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": environment},
    }
    if "RAY_ADDRESS" in os.environ:
        ray.init(**options)
    else:
        # What the plan counted, which Ray may count otherwise.
        resources = ray_resources(this_machine())
        ray.init(address="local", include_dashboard=False, **resources, **options)


async def _play(playing: Playing) -> None:
    """Start the actors, play, and end the actors, whatever happens."""
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None

    def asked_to_stop() -> None:
        # The second time, or before there is a game to save: at once.
        if not playing.ask_to_stop():
            main.cancel()

    def hung_up() -> None:
        # The terminal is gone, and printing to it would end the run before it is saved.
        sys.stdout = sys.stderr = io.StringIO()
        asked_to_stop()

    # A signal that is ignored is so on purpose, as nohup does.
    caught = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    for number in caught:
        loop.add_signal_handler(number, hung_up if number == signal.SIGHUP else asked_to_stop)
    try:
        await playing.play()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        # Whoever asks for an end now has it already, and half a clean-up leaves processes.
        for number in caught:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        await playing.wired.stop()
        playing.close()
