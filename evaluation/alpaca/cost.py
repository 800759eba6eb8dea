"""What the judge will cost, before anything is sent, and what it has cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from configs.errors import UserError
from evaluation.alpaca.config import ChatJudgeConfig, PriceConfig
from evaluation.alpaca.store import Reply

BYTES_PER_TOKEN = 4
"""About right for English and a tokenizer of 100,000 tokens."""
CHAT_TOKENS = 10
"""What a chat template adds to a message, roughly."""
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is about to be sent; `cost` is None without prices."""

    requests: int
    paid_before: int
    draws: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    counted: str

    def __str__(self) -> str:
        """One line for the user."""
        price = "no prices given" if self.cost is None else f"at most {self.cost:.2f}"
        return (
            f"{self.requests} pairs to judge, {self.paid_before} judged before,"
            f" {self.draws} identical: about {self.prompt_tokens:,} tokens to send"
            f" ({self.counted}), at most {self.completion_tokens:,} to receive; {price}"
        )


def estimate(
    prompts: Sequence[str], config: ChatJudgeConfig, paid_before: int, draws: int
) -> Estimate:
    """Count the tokens of the prompts that are to be sent and price them.

    Raises:
        UserError: The tokenizer cannot be loaded, or the cost is above `max_cost`.
    """
    count, counted = _counter(config.tokenizer)
    prompt_tokens = sum(map(count, prompts)) + CHAT_TOKENS * len(prompts)
    completion_tokens = config.token_limit * len(prompts)
    cost = price_of(config.price, prompt_tokens, completion_tokens)
    found = Estimate(
        len(prompts), paid_before, draws, prompt_tokens, completion_tokens, cost, counted
    )
    if cost is not None and config.max_cost is not None and cost > config.max_cost:
        raise UserError(f"judge.max_cost {config.max_cost:g} is less than the estimate: {found}")
    return found


def price_of(price: PriceConfig | None, prompt_tokens: int, completion_tokens: int) -> float | None:
    """The price of so many tokens, None without prices."""
    if price is None:
        return None
    return (price.prompt * prompt_tokens + price.completion * completion_tokens) / MILLION


def spent(replies: Iterable[Reply], price: PriceConfig | None) -> dict[str, float | int | None]:
    """Tokens of the replies as their endpoint counted them, and their price."""
    counts = [(r.prompt_tokens or 0, r.completion_tokens or 0) for r in replies]
    sent, received = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return {
        "prompt_tokens": sent,
        "completion_tokens": received,
        "cost": price_of(price, sent, received),
    }


def _counter(tokenizer: str | None) -> tuple[Callable[[str], int], str]:
    """A function that counts tokens, and what to say of it."""
    if tokenizer is None:
        return (
            lambda text: -(-len(text.encode()) // BYTES_PER_TOKEN),
            f"a token per {BYTES_PER_TOKEN} bytes",
        )
    from actors.chat import load_tokenizer  # noqa: PLC0415 (transformers)

    try:
        loaded = load_tokenizer(tokenizer)
    except UserError as error:
        raise UserError(f"judge.tokenizer: {error}") from None
    return lambda text: len(loaded.encode(text, add_special_tokens=False)), f"by {tokenizer}"
