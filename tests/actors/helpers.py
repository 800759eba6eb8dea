"""What the tests of the actors ask of engines and models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from actors.packing import pack
from actors.policy import PolicyEngine
from actors.records import Completion, GenerationRequest, Sampling
from configs.fleets import RolloutConfig

TINY_ENGINE = RolloutConfig(
    dtype="float32", context=384, max_sequences=16, kv_cache_gib=0.05, eager=True
)
PROMPT = np.arange(10, 30, dtype=np.int32)
LONG_PROMPT = np.tile(PROMPT, 10)
SAMPLED = Sampling(max_tokens=24, logprobs=True)
GREEDY = Sampling(temperature=0.0, max_tokens=24, logprobs=True)


def start_policy_engine(folder: Path) -> PolicyEngine:
    """A small engine at float32 that takes weights through our backend."""
    return PolicyEngine(
        str(folder), TINY_ENGINE, section="rollout", transfer_backend="object_store"
    )


def ask(sampling: Sampling, *seeds: int | None, prompt: np.ndarray = PROMPT):
    """One request for each seed."""
    return [GenerationRequest(prompt, sampling, seed) for seed in seeds]


def model_logprobs(
    model: LlamaForCausalLM, ids: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """The log-probabilities [tokens - 1] of tokens 1… under a Hugging Face model."""
    token_ids = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        logits_TV = model(token_ids[None]).logits[0, :-1] / temperature
    return logits_TV.log_softmax(-1).gather(1, token_ids[1:, None])[:, 0].numpy()


def answer_logprobs(
    model: LlamaForCausalLM, made: Completion, temperature: float = 1.0
) -> np.ndarray:
    """The log-probabilities of a completion's own tokens under a Hugging Face model."""
    whole = np.concatenate([made.prompt_token_ids, made.token_ids])
    return model_logprobs(model, whole, temperature)[len(made.prompt_token_ids) - 1 :]


def perturb(model: LlamaForCausalLM, seed: int) -> None:
    """Change every weight of a model in place, as much as many training steps would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def send_weights(engine: PolicyEngine, model: LlamaForCausalLM) -> None:
    """Send a model's weights in several buffers, without putting them to use."""
    engine.start_update().result()
    for buffer in pack(model.named_parameters(), buffer_bytes=60_000):
        engine.load_update(dict(buffer)).result()


def update(engine: PolicyEngine, model: LlamaForCausalLM, version: int) -> None:
    """Replace an engine's weights with a model's."""
    send_weights(engine, model)
    engine.finish_update(version).result()
