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
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Protocol

from configs.errors import UserError
from configs.load import flat
from configs.schema import RunConfig
from configs.trackers import MlflowConfig, WandbConfig
from learner.checkpoint import write_durably

log = logging.getLogger(__name__)

IDS = "trackers.json"
MADE = {IDS, "wandb"}
"""What opening a service leaves in a run's directory."""
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


class Service(Tracker, Protocol):
    """A run at a service."""

    run_id: str

    def close(self, *, failed: bool) -> None:
        """Hand over what is held back, and say how the run has ended."""
        ...


@contextmanager
def open_trackers(config: RunConfig) -> Iterator[Sequence[Tracker]]:
    """Open the services of `metrics.wandb` and `metrics.mlflow`; close them at the end.

    Raises UserError naming the key where a package is missing or a service refuses.
    """
    path = config.run_dir / IDS
    ids: dict[str, str] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    sections = {"wandb": (config.metrics.wandb, _Wandb), "mlflow": (config.metrics.mlflow, _Mlflow)}
    with ExitStack() as opened:
        trackers = []
        for name, (section, make) in sections.items():
            if section is not None:
                service: Service = make(config, section, ids.get(name))
                trackers.append(opened.enter_context(Lenient(f"metrics.{name}", service)))
                ids[name] = service.run_id
                write_durably(path, json.dumps(ids))
        yield trackers


class Lenient:
    """A service whose first failure is a warning, after which it is left alone."""

    def __init__(self, key: str, service: Service) -> None:
        self._key = key
        self._service: Service | None = service

    def write(self, iteration: int, figures: Figures) -> None:
        """Add the figures of one iteration, unless it has failed."""
        if self._service is not None:
            self._try(partial(self._service.write, iteration, figures))

    def __enter__(self) -> Lenient:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._service is not None:
            self._try(partial(self._service.close, failed=kind is not None))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 (whatever a service does, the run goes on)
            cause = without_user(repr(error))
            log.warning("%s: figures are missing there from now on: %s", self._key, cause)
            self._service = None


def without_user(text: str) -> str:
    """A text whose addresses name no user and no password."""
    return re.sub(r"//[^/@\s]+@", "//…@", text)


class _Wandb:
    """A run of Weights & Biases."""

    def __init__(self, config: RunConfig, section: WandbConfig, known: str | None) -> None:
        wandb = _package("metrics.wandb", "wandb", "wandb")
        self.run_id = known or uuid.uuid4().hex
        settings = wandb.Settings(console="off", disable_git=True, finish_timeout=MOST_WAIT_S)
        try:
            self._run = wandb.init(
                project=section.project,
                entity=section.entity,
                mode=section.mode,
                dir=config.run_dir,
                name=config.run_dir.name,
                id=self.run_id,
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

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    """A run of MLflow."""

    def __init__(self, config: RunConfig, section: MlflowConfig, known: str | None) -> None:
        # Else a server that has gone silent would hold the end of the run for many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(MOST_WAIT_S))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        # In the order of the iterations; threads of its file store race for a figure's first line.
        os.environ.setdefault("MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE", "1")
        self._entities = _package("metrics.mlflow", "mlflow.entities", "mlflow-skinny")
        refusal = importlib.import_module("mlflow.exceptions").MlflowException
        try:
            self._client = importlib.import_module("mlflow").MlflowClient(section.tracking_uri)
            self.run_id = known or self._begin(config, section.experiment)
            self._client.update_run(self.run_id, status="RUNNING")
        except refusal as error:
            # Its message may hold the whole address, and so would that of a cause.
            raise UserError(f"metrics.mlflow: {without_user(str(error))}") from None

    def _begin(self, config: RunConfig, name: str) -> str:
        client = self._client
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        run_id = client.create_run(experiment, run_name=config.run_dir.name).info.run_id
        parameters = [
            self._entities.Param(key, str(value))
            for key, value in flat(config.model_dump(mode="json")).items()
        ]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            client.log_batch(run_id, params=parameters[start : start + MOST_PARAMETERS])
        return run_id

    def write(self, iteration: int, figures: Figures) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(key, value, now, iteration) for key, value in figures.items()
        ]
        self._client.log_batch(self.run_id, metrics=metrics, synchronous=False)

    def close(self, *, failed: bool) -> None:
        # Waits until all is written.
        self._client.set_terminated(self.run_id, status="FAILED" if failed else "FINISHED")


def _package(key: str, module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{key}: the driver's Python has no {package}: pip install {package} there"
        ) from error
