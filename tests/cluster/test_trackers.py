"""Weights & Biases and MLflow: the real clients, with their stores on this disk."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from wandb.proto.wandb_internal_pb2 import Record

from cluster.metrics import History, scalars
from cluster.trackers import Lenient, open_trackers
from configs.errors import UserError
from configs.load import load
from configs.schema import RunConfig
from tests.evaluation.synthetic import PRESETS, records

BLOCK, FULL, LAST = 32768, 1, 4


def make_config(run_dir: Path, **sections: dict) -> RunConfig:
    config = load(PRESETS / "quickstart.yaml", ["queries=4", "answers=4", f"run_dir={run_dir}"])
    metrics = config.metrics.model_dump() | sections
    return RunConfig.model_validate(config.model_dump() | {"metrics": metrics})


def life(config: RunConfig, iterations: range) -> None:
    """Write the records of some iterations, as one life of a run does."""
    config.run_dir.mkdir(exist_ok=True)
    with open_trackers(config) as trackers:
        history = History(config.run_dir, iterations.start, trackers)
        for record in records(config, iterations.stop)[iterations.start :]:
            history.write(record)
        history.close()


def kept(file: bytes) -> Iterator[bytes]:
    """The records of a file of wandb's: LevelDB's log format behind a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(file):
        left = BLOCK - at % BLOCK
        _, length, kind = struct.unpack_from("<IHB", file, at)
        if left < 7 or kind == 0:
            at += left
            continue
        whole += file[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield whole
            whole = b""


def wandb_rows(run_dir: Path) -> list[dict[str, float]]:
    """What is kept to be sent, in the order of the run's lives."""
    rows = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for each in kept(path.read_bytes()):
            record = Record.FromString(each)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return rows


def test_wandb_holds_every_figure_of_each_iteration_across_lives(tmp_path):
    config = make_config(tmp_path / "run", wandb={"project": "games", "mode": "offline"})
    life(config, range(0, 3))
    (ids,) = {(tmp_path / "run" / "trackers.json").read_text()}
    life(config, range(2, 4))
    assert (tmp_path / "run" / "trackers.json").read_text() == ids
    # wandb's own process writes the file, and may be behind.
    deadline = time.monotonic() + 60
    while len(rows := wandb_rows(tmp_path / "run")) < 5 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 2, 3]
    for row, record in zip(rows[3:], records(config, 4)[2:], strict=True):
        figures = dict(scalars(record))
        assert len(figures) > 30
        assert {key: row[key] for key in figures} == pytest.approx(figures)


def test_mlflow_holds_every_figure_of_each_iteration_across_lives(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'store'}"
    config = make_config(tmp_path / "run", mlflow={"experiment": "games", "tracking_uri": uri})
    life(config, range(0, 3))
    life(config, range(2, 4))
    client = MlflowClient(uri)
    run_id = json.loads((tmp_path / "run" / "trackers.json").read_text())["mlflow"]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["rollout.context"] == str(config.rollout.context)
    for name, value in scalars(records(config, 4)[3]):
        written = client.get_metric_history(run_id, name)
        by_step = sorted((each.step, each.value) for each in written)
        assert [step for step, _ in by_step] == [0, 1, 2, 2, 3]
        assert by_step[-1] == (3, pytest.approx(value))


def test_a_run_that_fails_has_failed_at_the_service_too(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'store'}"
    config = make_config(tmp_path, mlflow={"experiment": "games", "tracking_uri": uri})
    with pytest.raises(KeyError), open_trackers(config):
        raise KeyError("a fault of the run")
    run_id = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    assert MlflowClient(uri).get_run(run_id).info.status == "FAILED"


class Failing:
    """A service that is gone."""

    run_id = "x"
    calls = 0

    def write(self, iteration: int, figures: Mapping[str, float]) -> None:
        self.calls += 1
        raise ConnectionResetError(f"http://me:secret@host, iteration {iteration}")

    def close(self, *, failed: bool) -> None:
        raise AssertionError("it is gone")


def test_a_service_that_fails_is_one_warning_and_does_not_end_the_run(caplog):
    gone = Failing()
    with Lenient("metrics.wandb", gone) as tracker:
        for iteration in range(3):
            tracker.write(iteration, {})
    assert gone.calls == 1
    (said,) = caplog.messages
    assert "metrics.wandb: figures are missing there from now on" in said
    assert "http://…@host, iteration 0" in said


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"mlflow": {"experiment": "games", "tracking_uri": "http://127.0.0.1:9"}},
            r"metrics.mlflow: .*127.0.0.1.*refused",
        ),
        ({"wandb": {"project": "games"}}, "metrics.wandb: .*API key.*mode=offline"),
    ],
)
def test_a_service_that_cannot_be_reached_is_named_before_anything_starts(
    tmp_path, monkeypatch, sections, said
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=said), open_trackers(make_config(tmp_path, **sections)):
        pass


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.entities", None)
    section = {"project": "games"} if name == "wandb" else {"experiment": "games"}
    config = make_config(tmp_path, **{name: section})
    said = f"metrics.{name}: the driver's Python has no {name}"
    with pytest.raises(UserError, match=said), open_trackers(config):
        pass


@pytest.mark.parametrize("user", ["me:key", "token"])
def test_a_secret_in_the_configuration_is_refused(tmp_path, user):
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD"):
        make_config(
            tmp_path, mlflow={"experiment": "games", "tracking_uri": f"https://{user}@host"}
        )
