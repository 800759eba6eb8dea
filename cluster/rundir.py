"""A run's directory: made, found again, and where the driver's log goes."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from actors.logs import LOGS, kept_in, note
from cluster.claim import DRIVER, living_driver
from cluster.initial import KEPT
from cluster.trackers import MADE
from configs.errors import UserError
from configs.load import RESOLVED, differences, load_resolved, save_resolved
from configs.schema import RunConfig
from learner.checkpoint import CheckpointStore, read_state

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
EXPORT = "hf"
"""The folder of the Hugging Face model in a checkpoint."""


def open_run(config: RunConfig) -> bool:
    """Make the run's directory, or find the same run in it; True where it was there.

    Raises UserError where another configuration lives there, or the disk cannot be written.
    """
    if not (config.run_dir / RESOLVED).is_file():
        _refuse_strangers(config.run_dir)
        save_resolved(config, config.run_dir)
        return False
    changed = differences(load_resolved(config.run_dir), config)
    if changed and _never_began(config.run_dir):
        (config.run_dir / KEPT).unlink(missing_ok=True)
        save_resolved(config, config.run_dir)
        return False
    if changed:
        raise UserError(
            f"run_dir {config.run_dir} holds a run with another configuration"
            f" ({'; '.join(changed[:4])}{' …' if len(changed) > 4 else ''}): choose another"
            " run_dir, or continue that run with selfplay resume"
        )
    return True


def reopen_run(run_dir: Path) -> RunConfig:
    """The configuration of the run in `run_dir`, wherever the directory was moved to."""
    return load_resolved(run_dir).model_copy(update={"run_dir": run_dir})


def newest_export(run_dir: Path) -> Path:
    """The Hugging Face model in a run's newest checkpoint.

    Raises UserError where the run has no checkpoint, or what it has is not whole.
    """
    keep = reopen_run(run_dir).checkpoint.keep
    folder = CheckpointStore(run_dir / CHECKPOINTS, keep).latest()
    if folder is None:
        raise UserError(f"{run_dir} has no checkpoint yet: let it play on until it has")
    read_state(folder)
    return folder / EXPORT


def best_export(run_dir: Path) -> Path:
    """The Hugging Face model in the checkpoint that `checkpoint.best` has marked.

    Raises UserError where none is marked, or what it has is not whole.
    """
    checkpoint = reopen_run(run_dir).checkpoint
    marked = CheckpointStore(run_dir / CHECKPOINTS, checkpoint.keep).best()
    if marked is None:
        raise UserError(
            f"{run_dir} has no best checkpoint (checkpoint.best is {checkpoint.best}): leave --best"
            " out for the newest"
        )
    read_state(marked[0])
    return marked[0] / EXPORT


@contextlib.contextmanager
def logged(run_dir: Path) -> Iterator[None]:
    """Write the driver's log to RUN/logs/driver.log, and warnings to the terminal too."""
    note(run=run_dir.absolute().name, actor="driver")
    to_file = kept_in(run_dir / LOGS / "driver.log")
    to_terminal = logging.StreamHandler()
    to_terminal.setFormatter(logging.Formatter("selfplay: %(levelname)s: %(message)s"))
    to_terminal.setLevel(logging.WARNING)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for handler in (to_file, to_terminal):
        root.addHandler(handler)
    hook, threading.excepthook = threading.excepthook, _keep
    try:
        yield
    except Exception:
        # The terminal shows it in its own way.
        root.removeHandler(to_terminal)
        log.exception("the run ends")
        raise
    finally:
        threading.excepthook = hook
        root.setLevel(level)
        for handler in (to_file, to_terminal):
            root.removeHandler(handler)
            handler.close()


def _keep(failed: threading.ExceptHookArgs) -> None:
    """Note what ended a thread: a library's, such as the one that writes for TensorBoard, where the
    disk is full. What the run itself needs says so in its own thread."""
    if failed.exc_value is not None:
        log.info("a thread has failed", exc_info=failed.exc_value)


def check_unchanged(config: RunConfig) -> None:
    """Refuse where another start has written its own configuration since this one looked.

    To be called by who holds the claim; nobody writes then.
    """
    if differences(load_resolved(config.run_dir), config):
        raise UserError(f"{config.run_dir} was taken by another start just now: choose another")


def _never_began(run_dir: Path) -> bool:
    """Whether a mistake ended the run before anything of it was made that could be lost."""
    made = {path.name for path in run_dir.iterdir()} - {RESOLVED, DRIVER, KEPT, LOGS, *MADE}
    return not made and living_driver(run_dir) is None


def _refuse_strangers(run_dir: Path) -> None:
    if run_dir.is_file():
        raise UserError(f"run_dir {run_dir} is a file: choose another run_dir")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise UserError(
            f"run_dir {run_dir} is not empty and holds no run ({RESOLVED} is not there): choose"
            " another run_dir"
        )
