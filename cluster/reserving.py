"""Actors as a fleet's section of the configuration reserves them."""

from __future__ import annotations

from typing import Any

import ray

from actors.placing import thread_environment
from cluster.missing import demand
from configs.fleets import FleetConfig

MOST_CALLS = 100_000
"""Calls that one actor takes at a time: all of them. The engines batch them, and the question
whether it lives must not queue behind them."""


def actor_class(kind: type, config: FleetConfig) -> Any:
    """The Ray actor class of `kind` with what its fleet reserves; Ray itself restarts nothing."""
    asked = demand(config)
    return ray.remote(kind).options(
        num_cpus=asked.get("CPU", 0),
        num_gpus=asked.get("GPU", 0),
        memory=asked.get("memory"),
        label_selector=config.labels or None,
        max_concurrency=MOST_CALLS,
        runtime_env={"env_vars": thread_environment(config.threads)},
    )
