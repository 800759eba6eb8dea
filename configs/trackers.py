"""Sections of the configuration: services that keep the figures of many runs side by side."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from configs.base import Config


class WandbConfig(Config):
    """Weights & Biases, where `wandb` is installed; it finds its key by itself (WANDB_API_KEY)."""

    project: str = Field(min_length=1)
    """Name of the project."""
    entity: str | None = None
    """User or team; null: the default of whoever is logged in."""
    mode: Literal["online", "offline"] = "online"
    """Offline: kept in RUN/wandb, to be sent with `wandb sync`."""


class MlflowConfig(Config):
    """MLflow, where `mlflow` or `mlflow-skinny` is installed."""

    experiment: str = Field(min_length=1)
    """Name of the experiment; made where there is none."""
    tracking_uri: str | None = None
    """Of the server; null: MLFLOW_TRACKING_URI."""

    @field_validator("tracking_uri")
    @classmethod
    def _keeps_no_secret(cls, uri: str | None) -> str | None:
        """The configuration is written to the run's directory and shown in its report."""
        if uri is not None and urlsplit(uri).username is not None:
            raise ValueError(
                "tracking_uri must hold no user, token or password: the environment's"
                " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or _TOKEN are for that"
            )
        return uri
