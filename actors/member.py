"""What every actor of a fleet has: a name, an endpoint for its metrics, and a log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    WorkerCrashedError,
)

from actors.logs import keep_log, note
from actors.telemetry import serve_metrics


@dataclass(frozen=True)
class Post:
    """A member's name in its fleet, where its metrics are served, and the run it works for."""

    name: str
    metrics_host: str
    run_dir: Path | None = None
    """Absolute; its log goes there. None: only to where Ray keeps its output."""

    def keep_log(self) -> None:
        """Have this process log to the run's directory, where there is one."""
        if self.run_dir is not None:
            keep_log(self.run_dir, self.name)


class EngineDiedError(RuntimeError):
    """The engine has failed and serves nothing any more; its process is to be replaced."""


LOST = (
    RayActorError,
    ActorUnschedulableError,
    NodeDiedError,
    WorkerCrashedError,
    ObjectLostError,
    OutOfMemoryError,
    RaySystemError,
    EngineDiedError,
)
"""What a call raises whose actor is dead, unreachable or of no use."""


class FleetMember:
    """A member of a fleet; its process serves its own metrics and keeps its own log."""

    def __init__(self, post: Post) -> None:
        post.keep_log()
        self._name = post.name
        self._metrics_address = serve_metrics(post.metrics_host)

    def note_iteration(self, iteration: int | None) -> None:
        """Have the log say for which iteration this member works, where that is known."""
        if iteration is not None:
            note(iteration=iteration)

    async def describe(self) -> dict[str, Any]:
        """Return who and where this member is."""
        return {
            "name": self._name,
            "pid": os.getpid(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "metrics_address": self._metrics_address,
        }
