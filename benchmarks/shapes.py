"""Models with random weights in the shapes that are measured; speed needs no trained ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from actors.records import TokenIds
from playground.tokenizer import make_tokenizer

PROMPT_TOKENS, CONTEXT = 32, 4096
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


@dataclass(frozen=True)
class Lengths:
    """How much is sampled and trained where the parts are measured by themselves."""

    sampled: int
    """Most tokens of an answer."""
    rows: int
    """Sequences of a training step."""
    prompt: int
    """Tokens of a row's prompt."""
    answer: tuple[int, int]
    """Tokens of a row's answer: at least, and less than."""


QUICKSTART = Lengths(sampled=128, rows=256, prompt=24, answer=(4, 20))
"""Of the quickstart's games, but for the sampled answers: shorter ones are over too soon."""
LLAMA = Lengths(sampled=512, rows=64, prompt=128, answer=(256, 513))
"""Of a Llama's games on a GPU: 8 queries × 8 answers, cut at 512 tokens."""
STOP = "42 "
"""What every hundredth word of a random model that `speaks` ends in."""


def random_model(shape: str, folder: Path, *, speaks: bool = False) -> Path:
    """Write a checkpoint of the shape with the playground's tokenizer.

    A random model samples all ids alike: nearly all of its texts are empty, since the playground
    has few words. One that `speaks` has a word for every id. Hardly any text of either ends by
    itself.
    """
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = CONTEXT
    settings: dict[str, Any] = {
        **SHAPES[shape],
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32" if shape == "tiny" else "bfloat16",
    }
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if speaks:
        _name_every_id(folder / "tokenizer.json", len(tokenizer), settings["vocab_size"])
    return folder


def _name_every_id(path: Path, first: int, end: int) -> None:
    content = json.loads(path.read_text("utf-8"))
    content["model"]["vocab"] |= {f"w{number}": number for number in range(first, end)}
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def random_prompts(count: int) -> list[TokenIds]:
    """Prompts of random tokens of the playground's vocabulary."""
    generator = np.random.default_rng(0)
    highest = len(make_tokenizer())
    return [generator.integers(10, highest, PROMPT_TOKENS).astype(np.int32) for _ in range(count)]
