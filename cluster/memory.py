"""How much memory learner ranks and engines take: estimates in GiB, each part named.

Parameters are counted exactly, on the meta device. What is rough: activations follow Llama's
block (its gated MLP, attention without materialised scores); the overheads are constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from configs.errors import UserError
from configs.fleets import EngineConfig
from configs.learner import LearnerConfig
from configs.safety import SafetyConfig

GIB = 2.0**30
PROCESS_GIB = 1.5
"""A CUDA context with NCCL's and the allocator's own use, or a CPU process with its libraries."""
ENGINE_WORK_GIB = 2.0
"""vLLM's activations and CUDA graphs."""
BYTES = {"float32": 4, "bfloat16": 2}
MASTER, MOMENTS, ACCUMULATED = 4, 8, 4
"""Bytes per parameter: float32 master weights, Adam's two moments, accumulated gradient."""

Parts = dict[str, float]
"""GiB by what takes them."""


@dataclass(frozen=True)
class ModelSize:
    """The numbers of a model that memory follows from."""

    parameters: int
    layers: int
    hidden: int
    feed_forward: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int

    @cached_property
    def block_elements(self) -> int:
        """Activations that one layer keeps per token for its backward pass."""
        attention = 8 * self.hidden + 2 * self.kv_heads * self.head_size
        return attention + 4 * self.feed_forward

    def kv_bytes(self, engine: EngineConfig) -> float:
        """KV cache of one token on one GPU of an engine."""
        heads = max(1, self.kv_heads / engine.tensor_parallel)
        return 2 * self.layers * heads * self.head_size * BYTES[engine.dtype]


def measure(
    key: str, path: str, revision: str | None = None, trust: bool = False, *, reward: bool = False
) -> ModelSize:
    """The size of a model in a folder or on the hub; only its config.json is read.

    `reward` is for a sequence classifier. `key` names the setting in the UserError for a model
    that is not there or is of no such kind.
    """
    # transformers takes seconds to import, which --help should not pay.
    import torch  # noqa: PLC0415
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key} {path!r}: no config.json of a model there; name a folder that holds one, or a"
            " hub id that this machine can reach (hf download fetches it where there is network,"
            f" HF_TOKEN opens gated ones): {_first_line(error)}"
        ) from None
    except StrictDataclassError as error:
        raise UserError(
            f"{key} {path!r}: its config.json is wrong, put the right one there:"
            f" {' '.join(str(error).split())}"
        ) from error
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = kind.from_config(config, trust_remote_code=trust)
    except ValueError as error:
        wanted = "a sequence classifier" if reward else "a causal language model"
        raise UserError(
            f"{key} {path!r}: a model of the type {config.model_type!r} cannot serve as"
            f" {wanted}: {_first_line(error)}"
        ) from error
    # A model of text and images keeps the numbers of its language model in a section.
    text = config.get_text_config()
    needed = ("num_attention_heads", "num_hidden_layers", "hidden_size", "vocab_size")
    for name in (*needed, "max_position_embeddings"):
        if getattr(text, name, None) is None:
            raise UserError(
                f"{key} {path!r}: a model of the type {config.model_type!r} has no {name}, which"
                " its memory follows from: name a transformer with attention"
            )
    heads = text.num_attention_heads
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        feed_forward=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        context=text.max_position_embeddings,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def learner_parts(learner: LearnerConfig, size: ModelSize, kl: bool) -> tuple[Parts, Parts]:
    """What one learner rank takes: (on its device, in main memory because of offload)."""
    weight, stage, ranks = BYTES[learner.dtype], learner.zero_stage, learner.ranks
    gib = size.parameters / GIB
    per_rank = gib / ranks
    master = 0 if learner.dtype == "float32" and stage == 0 else MASTER
    device = {
        "weights": weight * (per_rank if stage == 3 else gib),
        "gradients": ACCUMULATED * (per_rank if stage >= 2 else gib),
        "reference": weight * (per_rank if stage == 3 else gib) if kl else 0.0,
        "activations": _activations(learner, size),
        "logits": 3 * 4 * learner.logprob_chunk * size.vocabulary / GIB,
        "process": PROCESS_GIB,
    }
    optimiser = (master + MOMENTS) * (per_rank if stage >= 1 else gib)
    if not (learner.offload and stage >= 1):
        return device | {"optimiser": optimiser}, {}
    host = {"optimiser": optimiser, "gradients": device.pop("gradients")}
    if stage == 3:
        host["weights"] = device.pop("weights")
        device["gathered layers"] = 2 * weight * gib / size.layers
    return device, host


def _activations(learner: LearnerConfig, size: ModelSize) -> float:
    width = BYTES[learner.dtype]
    block = size.block_elements * width
    per_token = block * size.layers
    if learner.gradient_checkpointing:
        per_token = size.hidden * width * size.layers + block
    return per_token * learner.micro_batch_tokens / GIB


def resting_gib(parts: Parts) -> float:
    """What a learner rank keeps on its device between two steps."""
    return sum(g for name, g in parts.items() if name not in ("activations", "logits"))


def classifier_parts(safety: SafetyConfig, size: ModelSize) -> Parts:
    """What the safety classifier takes of its GPU, or of main memory where `gpus` is 0."""
    width = BYTES[safety.dtype]
    tokens = safety.batch * safety.max_tokens
    return {
        "weights": width * size.parameters / GIB,
        # One layer's, since nothing is kept for a backward pass.
        "activations": width * size.block_elements * tokens / GIB,
        "process": PROCESS_GIB,
    }


def engine_parts(fleet: str, engine: EngineConfig, size: ModelSize, gpu_gib: float) -> Parts:
    """What an engine takes of each of its GPUs, or of main memory where `gpus` is 0.

    Raises UserError where its weights and one sequence of its context do not fit.
    """
    if engine.context > size.context:
        raise UserError(
            f"fleet {fleet}: context {engine.context} is more than the model's {size.context}"
        )
    weights = BYTES[engine.dtype] * size.parameters / engine.tensor_parallel / GIB
    if engine.gpus == 0:
        work, cache = PROCESS_GIB, engine.kv_cache_gib
        remedy = "raise its kv_cache_gib or lower its context"
    else:
        work, cache = ENGINE_WORK_GIB, engine.memory_fraction * gpu_gib - weights - ENGINE_WORK_GIB
        remedy = "raise its memory_fraction or tensor_parallel, or lower its context"
    one = size.kv_bytes(engine) * engine.context / GIB
    if cache < one:
        raise UserError(
            f"fleet {fleet}: weights take {weights:.1f} GiB and leave {max(cache, 0):.1f} GiB for"
            f" the KV cache, but one sequence of {engine.context} tokens needs {one:.1f}: {remedy}"
        )
    return {"weights": weights, "KV cache": cache, "process": work}
