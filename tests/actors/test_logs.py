"""Logs of processes: every line says whose it is."""

from __future__ import annotations

import logging
import re

import pytest

from actors import logs


@pytest.fixture(autouse=True)
def quiet_after():
    """Take the handlers and levels back."""
    loggers = [logging.getLogger(name) for name in (None, *logs.APART)]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
    logs.note(run="-", actor="-", iteration="-", version="-")


@pytest.mark.parametrize("propagate", [False, True])
def test_every_line_says_of_which_run_actor_iteration_and_version(tmp_path, monkeypatch, propagate):
    run_dir = tmp_path / "walk"
    (run_dir / "logs").mkdir(parents=True)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    logs.keep_log(run_dir, "rollout-1")
    # The library comes up, and may take its lines apart from the root's.
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", propagate)
    logs.keep_libraries()
    logs.keep_libraries()
    logging.getLogger("actors.somewhere").info("one")
    logs.note(iteration=6, version=7)
    logging.getLogger("vllm.engine").warning("two")
    lines = (run_dir / "logs" / "rollout-1.log").read_text().splitlines()
    assert [re.sub(r"^\S+ \S+ ", "", line) for line in lines] == [
        "INFO run=walk actor=rollout-1 iteration=- version=- actors.somewhere: one",
        "WARNING run=walk actor=rollout-1 iteration=6 version=7 vllm.engine: two",
    ]


def test_a_node_that_does_not_share_the_folder_keeps_nothing(tmp_path):
    logs.keep_log(tmp_path / "elsewhere", "rollout-1")
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_the_disk_has_no_room_for_ends_nothing_and_says_nothing(tmp_path, capsys):
    (tmp_path / "full.log").symlink_to("/dev/full")
    handler = logs.kept_in(tmp_path / "full.log")
    logger = logging.getLogger("a logger of this test")
    logger.addHandler(handler)
    logger.warning("one")
    logger.removeHandler(handler)
    handler.close()
    assert capsys.readouterr().err == ""
