"""A run's directory belongs to one configuration, one model and one driver."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from cluster.rundir import DRIVER, claimed, living_driver, model_identity, open_run, stop_driver
from configs.errors import UserError
from configs.load import load, load_resolved
from tests.models import save_causal_model

PRESET = Path("configs/quickstart.yaml")


def config(run_dir: Path, *overrides: str):
    return load(PRESET, [f"run_dir={run_dir}", *overrides])


def test_the_same_run_is_continued_and_another_refused(tmp_path: Path):
    run_dir = tmp_path / "run"
    assert open_run(config(run_dir)) is False
    assert open_run(config(run_dir)) is True
    with pytest.raises(UserError, match=r"another configuration \(queries: 32 → 16\)"):
        open_run(config(run_dir, "queries=16"))
    assert load_resolved(run_dir).queries == 32


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        open_run(config(tmp_path))
    with pytest.raises(UserError, match="is a file"):
        open_run(config(tmp_path / "thesis.tex"))


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path):
    refused = pytest.raises(UserError, match=f"is being trained by process {os.getpid()}")
    with claimed(tmp_path), refused, claimed(tmp_path):
        pytest.fail("two drivers")
    assert not (tmp_path / DRIVER).exists()


def test_a_dead_drivers_claim_counts_for_nothing(tmp_path: Path):
    # Its number now belongs to this process, which began at another time.
    dead = {"pid": os.getpid(), "host": socket.gethostname(), "born": "1"}
    (tmp_path / DRIVER).write_text(json.dumps(dead))
    assert living_driver(tmp_path) is None
    with claimed(tmp_path):
        assert living_driver(tmp_path) is not None


def test_a_driver_elsewhere_is_named(tmp_path: Path):
    open_run(config(tmp_path / "run"))
    elsewhere = {"pid": 1, "host": "node-7", "born": "1"}
    (tmp_path / "run" / DRIVER).write_text(json.dumps(elsewhere))
    with pytest.raises(UserError, match="is driven from node-7"):
        stop_driver(tmp_path / "run")


def test_stopping_what_does_not_run_says_so(tmp_path: Path):
    open_run(config(tmp_path / "run"))
    with pytest.raises(UserError, match="is not running"):
        stop_driver(tmp_path / "run")
    with pytest.raises(UserError, match="is no run directory"):
        stop_driver(tmp_path)


def test_models_of_one_shape_are_told_apart_by_their_weights(tmp_path: Path):
    one, other = (save_causal_model(tmp_path / str(seed), tied=False, seed=seed) for seed in (0, 1))
    assert model_identity(str(one), None) != model_identity(str(other), None)
    assert model_identity(str(one), None) == model_identity(str(one), None)


def test_models_are_told_apart(tiny_model):
    tied, untied = (model_identity(str(tiny_model(kind)), None) for kind in (True, False))
    assert tied != untied
    assert tied == model_identity(str(tiny_model(True)), "any")
    assert model_identity("org/name", "v1") != model_identity("org/name", None)
