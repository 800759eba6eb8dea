"""Small random models with a real tokenizer and chat template, made where a test needs one."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>", "<|header|>", "<|/header|>", "<|eot|>"]
# Like Llama 3's: BOS inside the template, today's date in a system header, trimmed contents.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- if date_string is not defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{ '<|header|>system<|/header|>\n' }}{{ 'Today: ' + date_string + '\n' }}"
    "{%- if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}"
    "{%- set messages = messages[1:] %}{%- endif %}{{ '<|eot|>' }}"
    "{%- for m in messages %}{{ '<|header|>' + m['role'] + '<|/header|>\n' }}"
    "{{ m['content'] | trim }}{{ '<|eot|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\n' }}{%- endif %}"
)
CORPUS = [
    "Sort the letters of b d a c.",
    "What is three plus four? It is seven.",
    "0 1 2 3 4 5 6 7",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with control tokens and a Llama-3-like chat template."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[5], pad_token=SPECIAL[2]
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def small_config(tied: bool, **overrides: object) -> LlamaConfig:
    """A Llama of about 0.2M parameters whose head size vLLM's CPU attention supports."""
    settings: dict[str, object] = {
        "vocab_size": len(make_tokenizer()),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 5,
        "pad_token_id": 2,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**(settings | overrides))


def save_causal_model(folder: Path, *, tied: bool, seed: int = 0) -> Path:
    """Write a random causal model with its tokenizer; `initializer_range` makes logits peaked."""
    torch.manual_seed(seed)
    LlamaForCausalLM(small_config(tied)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_reward_model(folder: Path, *, labels: int = 1, seed: int = 0) -> Path:
    """Write a random sequence classifier with its tokenizer."""
    torch.manual_seed(seed)
    LlamaForSequenceClassification(small_config(False, num_labels=labels)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
