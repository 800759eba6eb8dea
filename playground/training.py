"""Training from scratch by plain next-token prediction, for a fixed number of tokens.

Nothing here depends on time: the same seed on the same machine and libraries gives the same model.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from playground import corpus
from playground.tokenizer import BEGIN, CONTEXT, END, PAD, control_id, make_tokenizer

PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class Recipe:
    """Size of the model and length of its training; `tokens` counts prompts, not padding."""

    tokens: int = 3_000_000
    batch_tokens: int = 1_024
    learning_rate: float = 2e-3
    warmup_share: float = 0.03
    final_rate: float = 0.15
    weight_decay: float = 0.05
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 384
    threads: int = 2
    initial_spread: float = 0.06


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A small untrained Llama."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=control_id(tokenizer, BEGIN),
        eos_token_id=control_id(tokenizer, END),
        pad_token_id=control_id(tokenizer, PAD),
        dtype="float32",
        initializer_range=recipe.initial_spread,
    )
    return LlamaForCausalLM(config)


def reply_loss(
    model: LlamaForCausalLM, examples: list[corpus.Example], pad_id: int
) -> torch.Tensor:
    """Mean cross-entropy over the replies' tokens.

    Padding is on the right, so causal attention alone keeps it out of sight.
    """
    ids, mask = (torch.from_numpy(array) for array in corpus.pad(examples, pad_id))
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = mask[:, 1:]
    return functional.cross_entropy(model.lm_head(hidden[targets]), ids[:, 1:][targets])


def make_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW, with weight decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def rate_at(progress: float, warmup_share: float, final_rate: float) -> float:
    """The learning rate's factor at a share of the training: up to 1, then down to `final_rate`.

    It does not end at zero: what self-play polishes should still be a little rough.
    """
    left = (1 - progress) / (1 - warmup_share)
    return min(progress / warmup_share, final_rate + (1 - final_rate) * left)


class Progress:
    """Says every few seconds how far the training is and when it will end."""

    def __init__(self, total: int) -> None:
        self.total, self.start, self.last = total, time.monotonic(), time.monotonic()
        self.losses: list[float] = []

    def report(self, done: int, loss: float) -> None:
        """Prints one line, with the mean loss since the last, if that is some seconds old."""
        now = time.monotonic()
        self.losses.append(loss)
        if now - self.last < PROGRESS_SECONDS and done < self.total:
            return
        self.last, mean = now, sum(self.losses) / len(self.losses)
        self.losses.clear()
        rate = done / (now - self.start)
        eta = max(0, self.total - done) / rate
        share = min(1.0, done / self.total)
        print(
            f"base model: {share:4.0%}  loss {mean:.3f}  {rate:,.0f} tokens/s  ETA {eta:3.0f} s",
            flush=True,
        )


def train(recipe: Recipe, seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model trained on `recipe.tokens` tokens of the corpus, and its tokenizer."""
    torch.set_num_threads(recipe.threads)
    tokenizer = make_tokenizer()
    model = make_model(recipe, tokenizer, seed)
    model.train()
    optimizer = make_optimizer(model, recipe)
    encoders = corpus.Encoders(tokenizer)
    stream: Iterator[list[corpus.Example]] = corpus.batches(
        encoders, random.Random(f"corpus:{seed}"), recipe.batch_tokens
    )
    pad_id = control_id(tokenizer, PAD)
    progress, done = Progress(recipe.tokens), 0
    while done < recipe.tokens:
        examples = next(stream)
        # Batches differ in size: the middle of one is where the schedule is read.
        done += sum(map(len, examples))
        factor = rate_at(min(1.0, done / recipe.tokens), recipe.warmup_share, recipe.final_rate)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        loss = reply_loss(model, examples, pad_id)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress.report(done, loss.item())
    return model.eval(), tokenizer
