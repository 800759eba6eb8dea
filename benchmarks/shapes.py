"""Models with random weights in the shapes that are measured; speed needs no trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from actors.records import TokenIds
from playground.tokenizer import make_tokenizer

PROMPT_TOKENS = 32
SHAPES: dict[str, dict[str, int | bool]] = {
    "tiny": {  # 3.7M parameters
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama-3.2-3b": {
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
}


def random_model(shape: str, folder: Path) -> Path:
    """Write a checkpoint of the shape with the playground's tokenizer."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    settings: dict[str, Any] = {
        **SHAPES[shape],
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32" if shape == "tiny" else "bfloat16",
    }
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_prompts(count: int) -> list[TokenIds]:
    """Prompts of random tokens of the playground's vocabulary."""
    generator = np.random.default_rng(0)
    highest = len(make_tokenizer())
    return [generator.integers(10, highest, PROMPT_TOKENS).astype(np.int32) for _ in range(count)]
