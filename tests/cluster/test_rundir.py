"""A run's directory belongs to one configuration and one model."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.claim import claimed
from cluster.rundir import check_unchanged, logged, open_run
from configs.errors import UserError
from configs.load import load, load_resolved

PRESET = Path("configs/quickstart.yaml")


def config(run_dir: Path, *overrides: str):
    return load(PRESET, [f"run_dir={run_dir}", *overrides])


def test_the_same_run_is_continued_and_another_refused(tmp_path: Path):
    run_dir = tmp_path / "run"
    assert open_run(config(run_dir)) is False
    assert open_run(config(run_dir)) is True
    (run_dir / "games").mkdir()
    with pytest.raises(UserError, match=r"another configuration \(queries: 32 → 16[;)]"):
        open_run(config(run_dir, "queries=16"))
    assert load_resolved(run_dir).queries == 32


def test_a_run_that_never_began_gives_way_to_its_correction(tmp_path: Path):
    run_dir = tmp_path / "run"
    open_run(config(run_dir))
    (run_dir / "logs").mkdir()
    (run_dir / "model.json").write_text("{}")
    with claimed(run_dir), pytest.raises(UserError, match="another configuration"):
        open_run(config(run_dir, "queries=16"))  # one that is just beginning does not
    assert open_run(config(run_dir, "queries=16")) is False
    assert load_resolved(run_dir).queries == 16
    assert not (run_dir / "model.json").exists()


def test_a_start_that_was_overtaken_by_another_is_refused(tmp_path: Path):
    mine, other = config(tmp_path / "run"), config(tmp_path / "run", "seed=1")
    open_run(mine)
    open_run(other)  # before the first has claimed the run
    with claimed(tmp_path / "run"):
        check_unchanged(other)
        with pytest.raises(UserError, match="was taken by another start"):
            check_unchanged(mine)


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        open_run(config(tmp_path))
    with pytest.raises(UserError, match="is a file"):
        open_run(config(tmp_path / "thesis.tex"))


def test_a_threads_failure_is_kept_and_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    def fails() -> None:
        raise FileNotFoundError("events.out")

    (tmp_path / "logs").mkdir()
    before = threading.excepthook
    with logged(tmp_path):
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
    assert threading.excepthook is before
    assert capfd.readouterr().err == ""
    kept = (tmp_path / "logs" / "driver.log").read_text()
    assert "a thread has failed" in kept
    assert "FileNotFoundError: events.out" in kept
