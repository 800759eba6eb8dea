"""Checkpoints are whole or absent, and what is not ours or not whole is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from learner.checkpoint import CheckpointStore, read_state


def write(store, iteration, text="weights", **state):
    with store.writing(iteration) as draft:
        (draft.folder / "hf").mkdir()
        (draft.folder / "hf" / "model.bin").write_text(text)
        draft.state = state
    return store.root / str(iteration)


def test_write_read_and_keep_the_newest(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.latest() is None
    for iteration in (2, 9, 10):
        write(store, iteration, version=iteration)
    assert store.latest() == tmp_path / "checkpoints" / "10"
    assert (store.root / "latest").read_text() == "10"
    assert read_state(store.latest()) == {"version": 10}
    assert sorted(p.name for p in store.root.iterdir()) == ["10", "9", "latest"]
    write(store, 10, text="again", version=11)
    assert read_state(store.latest()) == {"version": 11}


def test_the_best_one_is_kept_beside_the_newest(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    assert store.best() is None
    write(store, 1)
    store.mark_best(1, 0.5)
    write(store, 2)
    write(store, 3)
    assert store.best() == (tmp_path / "1", 0.5)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["1", "3"]
    store.mark_best(3, 0.75)
    write(store, 4)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["3", "4"]


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("began", [6, 9])
def test_the_one_that_a_rollback_goes_back_to_is_kept(tmp_path, staleness, every, keep, began):
    store = CheckpointStore(tmp_path, keep)
    for iteration in range(every, 20, every):
        rows = {iteration} | ({began} if began < iteration else set())
        with store.writing(iteration, [max(row - 1 - staleness, 0) for row in rows]) as draft:
            draft.state = {}
    good = (began - 1 - staleness) // every * every
    assert store.roll_back(began - 1 - staleness) == (tmp_path / str(good) if good else None)


def test_roll_back_makes_an_older_one_the_latest(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for iteration in (2, 4, 6):
        write(store, iteration)
    store.mark_best(4, 0.5)
    assert store.roll_back(5) == store.latest() == tmp_path / "4"
    assert store.best() == (tmp_path / "4", 0.5)
    assert not (tmp_path / "6").exists()
    assert store.roll_back(3) == store.latest() == tmp_path / "2"
    assert store.best() is None
    assert store.roll_back(1) is None
    assert store.latest() is None


def test_a_write_that_fails_leaves_the_old_one(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    write(store, 1, version=1)
    with pytest.raises(TypeError):  # in the middle: the folder is there, the file is not
        write(store, 2, text=None)  # pyright: ignore[reportArgumentType]
    assert read_state(store.latest()) == {"version": 1}
    write(store, 3, version=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "latest"]


def test_a_cut_off_or_missing_file_is_named(tmp_path):
    folder = write(CheckpointStore(tmp_path, keep=1), 1)
    (folder / "hf" / "model.bin").write_text("weig")
    with pytest.raises(UserError, match=r"model\.bin has 4 bytes where 7"):
        read_state(folder)
    (folder / "hf" / "model.bin").unlink()
    with pytest.raises(UserError, match=r"model\.bin has no bytes"):
        read_state(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"format": 99, "files": {}, "state": 0}']
)
def test_a_foreign_folder_is_refused(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        read_state(tmp_path)
    with pytest.raises(UserError, match="not a checkpoint"):
        read_state(tmp_path / "nowhere")


def test_a_run_directory_that_is_gone_is_not_made_anew(tmp_path):
    with (
        pytest.raises(UserError, match="cannot write the checkpoint"),
        CheckpointStore(tmp_path / "gone" / "checkpoints", keep=1).writing(1),
    ):
        pass
    assert not (tmp_path / "gone").exists()


def test_a_pointer_to_nothing_is_refused(tmp_path):
    (tmp_path / "latest").write_text("../../etc")
    with pytest.raises(UserError, match="latest"):
        CheckpointStore(tmp_path, keep=1).latest()


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    store = CheckpointStore(tmp_path / "file", keep=1)
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        write(store, 1)


def test_files_that_a_rank_wrote_elsewhere_are_missed(tmp_path):
    """As where `run_dir` is a folder of each node's own."""
    store = CheckpointStore(tmp_path, keep=1)
    write(store, 1, version=1)
    with (
        pytest.raises(UserError, match=r"optim_states\.pt .* finds no bytes: set run_dir"),
        store.writing(2) as draft,
    ):
        draft.written[draft.folder / "rank_1_optim_states.pt"] = 7
    assert read_state(store.latest()) == {"version": 1}


def test_a_crash_while_a_checkpoint_is_replaced_leaves_the_old_one(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    write(store, 1, version=1)
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda a, b: rename(a, b) if a.name == "1" else os._exit(9))
    child = os.fork()
    if child == 0:
        write(store, 1, version=2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    assert not (tmp_path / "1").exists()
    assert read_state(store.latest()) == {"version": 1}
    write(store, 1, version=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "latest"]
    assert read_state(store.latest()) == {"version": 3}


FILL = """
import resource, signal, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from configs.errors import UserError
from learner.rank import _writing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
folder, big = Path(sys.argv[1]), torch.zeros(100_000)
for write in (lambda: torch.save(big, folder / "a.pt"),
              lambda: save_file({"a": big}, folder / "b.safetensors")):
    try:
        with _writing(folder):
            write()
    except UserError as error:
        print(error)
"""


def test_a_disk_that_fills_up_is_one_sentence_whoever_writes(tmp_path):
    """torch and safetensors raise errors of their own, no OSError."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(f"checkpoint folder {tmp_path} cannot be written" in line for line in lines)
