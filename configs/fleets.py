"""Configuration of the fleets of actors: how many, on what, with which engine settings."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from configs.base import Config, Dtype, Label


class AutoscaleConfig(Config):
    """Lets a fleet change its own size: it grows while its load is above the target, and shrinks
    while fewer actors would do."""

    min: int = Field(default=1, ge=1)
    """Fewest actors."""
    max: int = Field(ge=1)
    """Most actors."""
    target: float = Field(gt=0)
    """Of the rollout fleet: the share of its time that the learner may wait for groups, below 1. Of
    the others: the calls, in hand and waiting, for each actor."""
    dead_band: float = Field(default=0.2, ge=0, lt=1)
    """Share by which the load may be more than the size is for before the fleet grows."""
    smoothing_s: float = Field(default=120.0, gt=0)
    """Seconds after which an observation weighs a third of what it did in the running mean."""
    grow_after_s: float = Field(default=120.0, ge=0)
    """Seconds that the fleet must be too small without a break, since its last change, to grow."""
    shrink_after_s: float = Field(default=600.0, ge=0)
    """The same for too large; also the pause after a growth whose newcomers could not start."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: lower min or raise max")
        return self


class FleetConfig(Config):
    """A set of equal actors, restarted when they die."""

    replicas: int = Field(default=1, ge=1)
    """How many actors."""
    cpus: float = Field(default=1.0, ge=0)
    """Ray CPUs that each actor reserves."""
    gpus: float = Field(default=0.0, ge=0)
    """Ray GPUs that each actor reserves (per tensor-parallel rank for an engine)."""
    memory_gib: float = Field(default=0.0, ge=0)
    """GiB of main memory that each actor reserves of what Ray counts; 0: none."""
    labels: dict[Label, Label] = Field(default_factory=dict)
    """Labels that the actors' nodes must have, as `ray start --labels` gives them to a node: so
    that each fleet runs on nodes of its own kind."""
    threads: int | None = Field(default=None, ge=1)
    """Threads that each actor computes with on CPU; null: as many as its `cpus`. Actors that work
    by turns share cores well, each with more threads than it reserves."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Seconds one call may take before its actor counts as hung and is replaced."""
    silence_s: float = Field(default=60.0, gt=0)
    """Seconds that an actor may leave a simple question unanswered, whatever it works on, before it
    counts as hung. It is asked three times as often."""
    start_deadline_s: float = Field(default=900.0, gt=0)
    """Seconds an actor may take to start (load its model) before the run says so and stops."""
    placement_deadline_s: float = Field(default=60.0, gt=0)
    """Seconds an actor may wait for a place before the run says what is missing. It goes on waiting
    and joins when it has one; a running game goes on with the others meanwhile."""
    drain_deadline_s: float = Field(default=120.0, gt=0)
    """Seconds an actor that leaves may take to finish the calls in its hands; those that are left
    then are redone by others."""
    restarts: int = Field(default=10, ge=0)
    """How often members of this fleet may be restarted between two trained iterations (in an
    evaluation: in all) before the run stops, since a fleet that dies of its work trains nothing. 0:
    never; otherwise a fleet of more members may lose each of them once."""
    autoscale: AutoscaleConfig | None = None
    """Changes the number of actors while the run goes on, from `replicas` on; null: only `selfplay
    scale` does."""

    @property
    def shares_gpus(self) -> bool:
        """Whether a GPU of this fleet serves others too."""
        return 0 < self.gpus < 1


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

    @model_validator(mode="after")
    def _waiting_is_a_share(self) -> Self:
        if self.autoscale is not None and self.autoscale.target >= 1:
            raise ValueError(
                f"autoscale.target {self.autoscale.target:g} is the share of its time that the"
                " learner may wait: set it below 1"
            )
        return self


class JudgeConfig(EngineConfig):
    """The engines of the frozen reference model that writes the quality verdicts."""
