"""Configuration of the fleets of actors: how many, on what, with which engine settings."""

from __future__ import annotations

from pydantic import Field

from configs.base import Config, Dtype


class FleetConfig(Config):
    """A set of equal actors, restarted when they die."""

    replicas: int = Field(default=1, ge=1)
    """How many actors."""
    cpus: float = Field(default=1.0, ge=0)
    """Ray CPUs that each actor reserves."""
    gpus: float = Field(default=0.0, ge=0)
    """Ray GPUs that each actor reserves (per tensor-parallel rank for an engine)."""
    threads: int | None = Field(default=None, ge=1)
    """Threads that each actor computes with on CPU; null: as many as its `cpus`. Actors that work
    by turns share cores well, each with more threads than it reserves."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Seconds one call may take before its actor counts as hung and is replaced."""
    start_deadline_s: float = Field(default=900.0, gt=0)
    """Seconds an actor may take to start (load its model) before the run says so and stops."""
    restarts: int = Field(default=10, ge=0)
    """How often the members of this fleet may be restarted in all before the run stops."""


class EngineConfig(FleetConfig):
    """A fleet of vLLM engines."""

    dtype: Dtype = "bfloat16"
    """Weights and activations of the engine."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share one engine."""
    context: int = Field(default=4096, ge=16)
    """Context limit of the engine in tokens: prompt plus completion."""
    max_sequences: int = Field(default=256, ge=1)
    """Most sequences decoded at once."""
    memory_fraction: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that the engine takes (weights and KV cache)."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """GiB of KV cache of an engine on CPU."""
    eager: bool = False
    """No CUDA graphs and no torch.compile: starts faster, decodes slower."""
    prefix_cache: bool = True
    """Share the prompt's KV cache among the G answers; reset at every weight update."""


class RolloutConfig(EngineConfig):
    """The engines that play both roles with the policy's weights."""

    seeded: bool = True
    """Give each completion its own seed, derived from the run's seed, the iteration, the query
    and the answer, so that games do not depend on which engine serves them. Costs speed on GPU."""


class JudgeConfig(EngineConfig):
    """The engines of the frozen reference model that writes the quality verdicts."""
