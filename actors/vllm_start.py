"""How vLLM is started: its environment, its settings, and what is the user's to put right."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from transformers import AutoConfig

from actors.logs import keep_libraries
from configs.errors import UserError
from configs.fleets import EngineConfig

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

CPU_BATCHED_TOKENS = 4096
"""Prompt tokens that one step of an engine on CPU takes in at most, its context at least."""
_STARTED: list[LLMEngine] = []
"""Keeps engines from being collected: with any one, vLLM tears down groups that belong to the
whole process, and so to its other engines."""


def check_model(
    model_path: str, revision: str | None, trust_remote_code: bool, section: str
) -> None:
    """Raise UserError where `model_path` is neither a model's folder nor a reachable hub id."""
    try:
        AutoConfig.from_pretrained(
            model_path, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{section}: no model at {model_path!r}: give a model's folder or a hub id that this"
            f" machine can reach ({_reason(error)})"
        ) from error


def set_environment() -> None:
    """Set what vLLM reads from the environment at its import, where the user has not."""
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if not torch.cuda.is_available():
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def engine_settings(config: EngineConfig) -> dict[str, Any]:
    """Return vLLM's arguments for a section of the configuration."""
    settings: dict[str, Any] = {
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel,
        "max_model_len": config.context,
        "max_num_seqs": config.max_sequences,
        "enforce_eager": config.eager,
        "enable_prefix_caching": config.prefix_cache,
        # After the temperature: what the learner, which divides its logits by it, compares with.
        "logprobs_mode": "processed_logprobs",
    }
    if torch.cuda.is_available():
        return settings | {"gpu_memory_utilization": config.memory_fraction}
    return settings | {
        "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        # After a chunk of a prompt vLLM takes the draw of a seeded request back, which the CPU's
        # random generator cannot do ("CPU Generator does not use offset"): prompts go in whole.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(config.context, CPU_BATCHED_TOKENS),
    }


def transfer_settings(backend: str | None) -> dict[str, Any]:
    """Return vLLM's arguments for weights that arrive by `backend`, None for a frozen model."""
    if backend is None:
        return {}
    return {
        "weight_transfer_config": {"backend": backend},
        "worker_extension_cls": "actors.transfer.PolicyWorker",
    }


def start_vllm(arguments: dict[str, Any], section: str) -> LLMEngine:
    """Start vLLM's engine in this thread, which is to be the one that steps it.

    Raises:
        UserError: vLLM refuses the model or the settings.
    """
    from vllm import EngineArgs  # noqa: PLC0415 — after the environment is set
    from vllm.exceptions import VLLMValidationError  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    keep_libraries()
    try:
        llm = LLMEngine.from_engine_args(EngineArgs(**arguments))
    except (ValueError, VLLMValidationError) as error:
        raise UserError(
            f"{section}: vLLM refuses {arguments['model']!r} with these settings: {_reason(error)}"
        ) from error
    _STARTED.append(llm)
    return llm


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(str(fault["msg"]) for fault in error.errors())
    return (str(error).strip() or type(error).__name__).splitlines()[0]
