"""Weights & Biases and MLflow: the figures of each iteration, where they are asked for.

A run that is continued goes on under the same id there, which RUN/trackers.json keeps. Figures of
iterations that are played again stand there twice, since neither service takes anything back.
What a service refuses once the run plays is a warning, and never ends the run.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Protocol

from configs.errors import UserError
from configs.schema import RunConfig
from configs.trackers import MlflowConfig, WandbConfig
from learner.checkpoint import write_durably

log = logging.getLogger(__name__)

IDS = "trackers.json"
MOST_WAIT_S = 10
"""How long the end of a run waits for a service that does not answer."""
MOST_PARAMETERS = 100
"""MLflow takes no more in one call."""
Figures = Mapping[str, float]


class Tracker(Protocol):
    """Where figures go."""

    def write(self, iteration: int, figures: Figures) -> None:
        """Add those of one iteration."""
        ...

    def close(self) -> None:
        """Hand over what is held back."""
        ...


def open_trackers(config: RunConfig) -> list[Tracker]:
    """Open the services of `metrics.wandb` and `metrics.mlflow`.

    Raises UserError naming the key where a package is missing or a service refuses.
    """
    path = config.run_dir / IDS
    known: dict[str, str] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    ids = dict(known)
    trackers: list[Tracker] = []
    if config.metrics.wandb is not None:
        trackers.append(Lenient("metrics.wandb", _Wandb(config, config.metrics.wandb, ids)))
    if config.metrics.mlflow is not None:
        trackers.append(Lenient("metrics.mlflow", _Mlflow(config, config.metrics.mlflow, ids)))
    if ids != known:
        write_durably(path, json.dumps(ids))
    return trackers


class Lenient:
    """A tracker whose first failure is a warning, after which it is left alone."""

    def __init__(self, key: str, tracker: Tracker) -> None:
        self._key = key
        self._tracker: Tracker | None = tracker

    def write(self, iteration: int, figures: Figures) -> None:
        """Add the figures of one iteration, unless it has failed."""
        if self._tracker is not None:
            self._try(partial(self._tracker.write, iteration, figures))

    def close(self) -> None:
        """Hand over what is held back, unless it has failed."""
        if self._tracker is not None:
            self._try(self._tracker.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 — whatever a service does, the run goes on
            log.warning("%s: figures are missing there from now on: %r", self._key, error)
            self._tracker = None


class _Wandb:
    """A run of Weights & Biases."""

    def __init__(self, config: RunConfig, section: WandbConfig, ids: dict[str, str]) -> None:
        wandb = _package("metrics.wandb", "wandb", "wandb")
        settings = wandb.Settings(console="off", disable_git=True, finish_timeout=MOST_WAIT_S)
        try:
            self._run = wandb.init(
                project=section.project,
                entity=section.entity,
                mode=section.mode,
                dir=config.run_dir,
                name=config.run_dir.name,
                id=ids.setdefault("wandb", uuid.uuid4().hex),
                resume="allow",
                config=config.model_dump(mode="json"),
                settings=settings,
            )
        except wandb.Error as error:
            raise UserError(
                f"metrics.wandb: {error} (metrics.wandb.mode=offline needs no service)"
            ) from error
        # Its own steps only grow, and an iteration that is played again goes back.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def write(self, iteration: int, figures: Figures) -> None:
        self._run.log({"iteration": iteration, **figures})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """A run of MLflow."""

    def __init__(self, config: RunConfig, section: MlflowConfig, ids: dict[str, str]) -> None:
        # Else a server that has gone silent would hold the end of the run for many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(MOST_WAIT_S))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self._entities = _package("metrics.mlflow", "mlflow.entities", "mlflow-skinny")
        errors = importlib.import_module("mlflow.exceptions")
        self._pending: list[Any] = []
        try:
            client = importlib.import_module("mlflow").MlflowClient(section.tracking_uri)
            if known := ids.get("mlflow"):
                client.update_run(known, status="RUNNING")
            else:
                ids["mlflow"] = self._begin(client, config, section.experiment)
        except errors.MlflowException as error:
            raise UserError(f"metrics.mlflow: {error}") from error
        self._client, self._run_id = client, ids["mlflow"]

    def _begin(self, client: Any, config: RunConfig, name: str) -> str:
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        run_id = client.create_run(experiment, run_name=config.run_dir.name).info.run_id
        parameters = [
            self._entities.Param(key, str(value))
            for key, value in _flat(config.model_dump(mode="json"))
        ]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            client.log_batch(run_id, params=parameters[start : start + MOST_PARAMETERS])
        return run_id

    def write(self, iteration: int, figures: Figures) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(key, value, now, iteration) for key, value in figures.items()
        ]
        sent = self._client.log_batch(self._run_id, metrics=metrics, synchronous=False)
        self._pending.append(sent)

    def close(self) -> None:
        for sent in self._pending:
            sent.wait()
        self._client.set_terminated(self._run_id)


def _package(key: str, module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{key}: the driver's Python has no {package}: pip install {package} there"
        ) from error


def _flat(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration by dotted key."""
    items = section.items() if isinstance(section, dict) else enumerate(section)
    for key, value in items:
        if isinstance(value, dict | list) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
