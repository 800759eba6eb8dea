"""What every actor of a fleet has: a name, and an endpoint for its process's metrics."""

from __future__ import annotations

import os
from typing import Any

import ray

from actors.telemetry import serve_metrics


class FleetMember:
    """A member of a fleet; its process serves its own metrics."""

    def __init__(self, name: str, metrics_host: str) -> None:
        self._name = name
        self._metrics_address = serve_metrics(metrics_host)

    async def describe(self) -> dict[str, Any]:
        """Return who and where this member is."""
        return {
            "name": self._name,
            "pid": os.getpid(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "metrics_address": self._metrics_address,
        }
