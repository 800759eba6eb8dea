"""The DeepSpeed configuration that follows from ours, and the learning rate of an iteration."""

from __future__ import annotations

import math
from typing import Any

from configs.learner import LearnerConfig


def deepspeed_config(config: LearnerConfig, *, hidden_size: int, parameters: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a model of `parameters` with `hidden_size`.

    Accumulation steps are 1 because the learner marks the boundary itself and scales its own
    losses; the buckets follow the model, since DeepSpeed's defaults reserve gigabytes for any.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.gradient_clip,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(config, hidden_size, parameters),
        **_precision(config),
    }


def reference_config(config: LearnerConfig, *, hidden_size: int, parameters: int) -> dict[str, Any]:
    """Return the configuration of the frozen reference, which has no optimiser."""
    full = deepspeed_config(config, hidden_size=hidden_size, parameters=parameters)
    full["zero_optimization"].pop("offload_optimizer", None)
    full["gradient_clipping"] = 0.0
    return full


def learning_rate(config: LearnerConfig, iteration: int, iterations: int) -> float:
    """Return the learning rate of `iteration` (from 0) of a run of `iterations`.

    Linear warm-up that reaches the full rate at iteration `warmup`; then constant, or linear or
    cosine down to 0 at the run's end. A function of the iteration alone: resuming cannot shift it.
    """
    if iteration < config.warmup:
        return config.learning_rate * (iteration + 1) / (config.warmup + 1)
    progress = (iteration - config.warmup) / max(iterations - config.warmup, 1)
    if config.schedule == "linear":
        return config.learning_rate * (1.0 - progress)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate


def _zero(config: LearnerConfig, hidden_size: int, parameters: int) -> dict[str, Any]:
    on_gpu = config.gpus > 0
    bucket = min(parameters, 200_000_000)
    # DeepSpeed accumulates bfloat16 gradients in float32 only under ZeRO. Stage 1 computes the same
    # as stage 0, with the optimiser's state sharded.
    stage = 1 if config.zero_stage == 0 and config.dtype == "bfloat16" else config.zero_stage
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if config.zero_stage == 3:
        # Smaller tensors (norms) stay whole on each rank: gathering them costs more than memory.
        zero["stage3_param_persistence_threshold"] = 10 * hidden_size
        zero["stage3_prefetch_bucket_size"] = min(hidden_size * hidden_size, bucket)
    if config.offload and stage > 0:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
        if config.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    return zero


def _precision(config: LearnerConfig) -> dict[str, Any]:
    if config.dtype == "float32":
        return {}
    return {
        # Without it a NaN gradient would be applied in bfloat16; in float32 ZeRO discards it.
        "bf16": {"enabled": True, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
