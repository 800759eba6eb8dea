"""A run from its first line to its last: made, played, saved, summed up, ended.

`train` and `resume` end in one of these ways: the last iteration is trained (a summary and a
report are written); the run was asked to stop (a checkpoint is written); too much went wrong in
a row (a checkpoint is written, and the error says where it began); or a fault, after which the
last checkpoint is the place to go on from. In each, no process is left behind.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import ray

from cluster.plan import make_plan, nodes_from
from cluster.playing import Playing
from cluster.rundir import claimed, logged, open_run, reopen_run
from cluster.wiring import wire
from configs.errors import UserError
from configs.schema import RunConfig
from evaluation.run_files import read_summary
from learner.checkpoint import CheckpointStore, read_state

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
MODELS = Path("runs") / "base-models"
"""Where models that `model.make` makes are kept for the next run."""


def train(config: RunConfig) -> None:
    """Play and learn; where the run directory holds the same run, continue it."""
    if open_run(config):
        print(f"{config.run_dir} holds this run already: continuing it.")
    _run(config)


def resume(run_dir: Path) -> None:
    """Continue a run from its last checkpoint."""
    _run(reopen_run(run_dir))


def export(run_dir: Path, target: Path) -> None:
    """Copy the newest checkpoint's Hugging Face model out of a run."""
    config = reopen_run(run_dir)
    folder = CheckpointStore(run_dir / "checkpoints", config.checkpoint.keep).latest()
    if folder is None:
        raise UserError(f"{run_dir} has no checkpoint yet")
    read_state(folder)
    if target.exists():
        raise UserError(f"{target} exists already: name a folder that does not")
    shutil.copytree(folder / "hf", target)
    print(f"{target}: the model after iteration {folder.name}, for transformers and vLLM.")


def _run(config: RunConfig) -> None:
    if read_summary(config.run_dir) is not None:
        print(f"{config.run_dir} has ended; its summary and its report are there.")
        return
    started = time.perf_counter()
    # Before a model is made for minutes, and before any actor takes a GPU.
    make_plan(config, nodes_from(None)[1])
    with claimed(config.run_dir), logged(config.run_dir):
        model_path, seconds = model_of(config)
        connect()
        try:
            asyncio.run(_play(config, model_path, {"base_model": seconds}, started))
        finally:
            ray.shutdown()


def model_of(config: RunConfig) -> tuple[str, float]:
    """The model's path, and the seconds it took to make it."""
    if config.model.make is None:
        return config.model.path, 0.0
    started = time.perf_counter()
    module, _, function = config.model.make.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"model.make {config.model.make!r} cannot be imported: {error}") from error
    path = str(Path(make(config.seed, MODELS)).absolute())
    return path, time.perf_counter() - started


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
        ray.init(address="local", include_dashboard=False, **options)


async def _play(
    config: RunConfig, model_path: str, seconds: dict[str, float], started: float
) -> None:
    """Start the actors, play, and end the actors, whatever happens."""
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None
    wired = wire(config, model_path)
    playing = Playing(config, wired, seconds, started)

    def asked_to_stop() -> None:
        # The second time, or before there is a game to save: at once.
        if not playing.ask_to_stop():
            main.cancel()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, asked_to_stop)
    try:
        await playing.play()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        # Whoever asks for an end now has it already, and half a clean-up leaves processes.
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        await wired.stop()
        playing.close()
