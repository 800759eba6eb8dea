"""Checkpoints that are whole or absent: written beside, flushed, renamed; checked when read.

    with store.writing(iteration) as draft:
        draft.written |= await learner.save(draft.folder / "deepspeed")
        draft.written |= await learner.export(draft.folder / "hf")
        draft.state = {...}
    state = read_state(store.latest())

`state.json` holds the caller's state and a manifest of every file with its size, so that a
truncated copy or a foreign folder is refused with a sentence that names the file. Files that other
processes say they wrote must be there too: a rank on another node whose `run_dir` is a folder of
its own writes them where no resume would find them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import UserError, naming

STATE_FILE = "state.json"
LATEST_FILE, BEST_FILE = "latest", "best.json"
FORMAT = 2
DRAFT_PREFIX, REPLACED_PREFIX = ".draft-", ".replaced-"

Sizes = dict[Path, int]
"""Files with their sizes in bytes."""


@dataclass
class Draft:
    """A checkpoint being written: files go into `folder`, the rest (JSON) into `state`.

    `written` are the files that other processes have written into it.
    """

    folder: Path
    state: dict[str, Any] = field(default_factory=dict)
    written: Sizes = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of a run, the newest `keep` of them."""

    def __init__(self, root: Path, keep: int) -> None:
        self.root = root
        self.keep = keep

    @contextmanager
    def writing(self, iteration: int, reaches: Sequence[int] = ()) -> Iterator[Draft]:
        """Give a draft to fill; on a clean end it becomes the newest checkpoint at once.

        A folder of the same iteration is replaced. Of each of `reaches` the newest one up to it is
        kept, however old, and all those behind the last of them, since it moves on. UserError
        where the disk cannot be written, or a file is missing that another process wrote.
        """
        folder = self.root / f"{DRAFT_PREFIX}{iteration}"
        try:
            # Not its parents: a run directory that is gone is not made anew without its rest.
            self.root.mkdir(exist_ok=True)
            for abandoned in self.root.glob(f"{DRAFT_PREFIX}*"):
                shutil.rmtree(abandoned)
            folder.mkdir()
            draft = Draft(folder)
            yield draft
            _seal(draft)
            self._put_in_place(draft.folder, self.root / str(iteration))
        except OSError as e:
            raise UserError(f"cannot write the checkpoint {folder}: {e}") from e
        self._remove_old(iteration, reaches)

    def latest(self) -> Path | None:
        """Return the newest checkpoint's folder, None where the run has none."""
        pointer = self.root / LATEST_FILE
        if not pointer.exists():
            return None
        name = pointer.read_text().strip()
        folder = self.root / name
        replaced = self.root / f"{REPLACED_PREFIX}{name}"
        if replaced.is_dir() and not folder.exists():
            # A crash between the two renames of `_put_in_place`.
            replaced.rename(folder)
        if not name.isdigit() or not folder.is_dir():
            raise UserError(
                f"{pointer} names the checkpoint {name!r}, which is not there: write the name of"
                f" one of {sorted(p.name for p in self.root.iterdir() if p.is_dir())} into it"
            )
        return folder

    def mark_best(self, iteration: int, value: float) -> None:
        """Keep the checkpoint of this iteration until another is marked."""
        marked = json.dumps({"iteration": iteration, "value": value})
        write_durably(self.root / BEST_FILE, marked)

    def best(self) -> tuple[Path, float] | None:
        """Return the folder and the value that were marked last, None where none was."""
        path = self.root / BEST_FILE
        if not path.is_file():
            return None
        marked = json.loads(path.read_text())
        return self.root / str(marked["iteration"]), marked["value"]

    def roll_back(self, iteration: int) -> Path | None:
        """Make the newest checkpoint up to `iteration` the latest one; the newer ones go.

        Returns its folder, None where the run has none so old: it begins anew then.
        """
        numbers = self._numbers()
        kept = [number for number in numbers if number <= iteration]
        # First, so that a crash on the way leaves a run that goes on from the right place.
        if kept:
            write_durably(self.root / LATEST_FILE, str(kept[-1]))
        else:
            (self.root / LATEST_FILE).unlink(missing_ok=True)
        marked = self.best()
        if marked is not None and int(marked[0].name) > iteration:
            (self.root / BEST_FILE).unlink()
        for number in numbers[len(kept) :]:
            shutil.rmtree(self.root / str(number))
        return self.root / str(kept[-1]) if kept else None

    def _numbers(self) -> list[int]:
        """The iterations of all checkpoints, ascending."""
        if not self.root.is_dir():
            return []
        return sorted(int(path.name) for path in self.root.iterdir() if path.name.isdigit())

    def _put_in_place(self, draft: Path, final: Path) -> None:
        replaced = self.root / f"{REPLACED_PREFIX}{final.name}"
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        draft.rename(final)
        write_durably(self.root / LATEST_FILE, final.name)
        shutil.rmtree(replaced, ignore_errors=True)

    def _remove_old(self, newest: int, reaches: Sequence[int]) -> None:
        numbers = self._numbers()
        kept = {newest, *numbers[-self.keep :]}
        for reach in reaches:
            kept |= set([number for number in numbers if number <= reach][-1:])
        if reaches:
            kept |= {number for number in numbers if number > max(reaches)}
        if (marked := self.best()) is not None:
            kept.add(int(marked[0].name))
        for number in numbers:
            if number not in kept:
                shutil.rmtree(self.root / str(number))


def read_state(folder: Path) -> dict[str, Any]:
    """Return the state saved in a checkpoint after comparing its files with the manifest.

    Raises:
        UserError: The folder is no checkpoint of ours, or a file is missing or cut short.
    """
    try:
        content = json.loads((folder / STATE_FILE).read_text())
        found, files, state = content["format"], content["files"], content["state"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{folder} is not a checkpoint of this program, or was cut short: its {STATE_FILE} is"
            f" unreadable ({e!r})"
        ) from e
    if found != FORMAT:
        raise UserError(f"{folder} has checkpoint format {found}; this version reads {FORMAT}")
    for name, size in files.items():
        path = folder / name
        actual = path.stat().st_size if path.is_file() else "no"
        if actual != size:
            raise UserError(
                f"checkpoint file {path} has {actual} bytes where {size} were written: the"
                " checkpoint is not whole, use an older one"
            )
    return state


def _seal(draft: Draft) -> None:
    """Flush every file to disk and write the manifest last."""
    _check_written(draft)
    files = sizes(draft.folder)
    for path in files:
        _flush(path)
    content = {
        "format": FORMAT,
        "state": draft.state,
        "files": {str(path.relative_to(draft.folder)): files[path] for path in sorted(files)},
    }
    write_durably(draft.folder / STATE_FILE, json.dumps(content, indent=1))


def _check_written(draft: Draft) -> None:
    """Refuse a checkpoint without the files that its writers say are in it."""
    for path, size in draft.written.items():
        # By name, since a network file system may show an old list of a folder's files.
        found = path.stat().st_size if path.is_file() else "no"
        if found != size:
            raise UserError(
                f"checkpoint file {path} was written with {size} bytes by a learner rank, and the"
                f" driver finds {found} bytes: set run_dir to a folder that every node shares"
            )


def sizes(folder: Path) -> Sizes:
    """The files under a folder, as this process sees them."""
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def write_durably(path: Path, text: str) -> None:
    """Write a file whole or not at all, whatever crashes."""
    draft = path.with_name(path.name + ".new")
    with naming(path):
        draft.write_text(text)
        _flush(draft)
        draft.replace(path)
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
