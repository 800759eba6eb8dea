"""Configuration of the two AlpacaEval commands; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from configs.base import Config, SamplingConfig

NOT_EXTRA = {
    "model", "messages", "temperature", "max_tokens", "max_completion_tokens", "logprobs",
    "top_logprobs", "n", "stream",
}  # fmt: skip
"""Fields of a request that are set by other keys, or that the reading of replies relies on."""


class LengthControlConfig(Config):
    """Where the length-controlled win rate comes from.

    With `weights` and `difficulty` it is predicted from them. Otherwise the library `alpaca_eval`
    fits it, for which it needs `df_gamed.csv`: the file named here, or the one on the hub.
    """

    gamed: Path | None = None
    """A local `df_gamed.csv`; null: from the hub, where it can be reached."""
    weights: Path | None = None
    """Fitted weights in AlpacaEval's form: a CSV with one row per model."""
    difficulty: Path | None = None
    """Difficulty of the instructions: a JSON list of rows with `instruction` and
    `instruction_difficulty`, or the hub's `instruction_difficulty.csv`."""
    model: str | None = None
    """Name of the row in `weights`; null: the evaluated model's name in the verdicts."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.weights is None) != (self.difficulty is None):
            raise ValueError("weights and difficulty are used together: name both files or neither")
        return self


class AggregateConfig(Config):
    """`selfplay evaluate alpaca-eval --annotations FILE`: win rates of verdicts that exist."""

    annotations: Path
    """Verdicts in AlpacaEval's form (`annotations.json`)."""
    generator: str | None = None
    """Which evaluated model (`generator_2`), where the file holds verdicts on several."""
    instructions: Path | None = None
    """A local file of the instructions with their subsets; null: from the hub, and only where
    rows say no subset of their own or have an output's length to control for."""
    base_annotations: Path | None = None
    """Verdicts on the base against the same reference: the difference between the two win rates
    then gets an interval, paired by instruction."""
    length_control: LengthControlConfig = LengthControlConfig()
    """The length-controlled win rate."""


class AnswersConfig(SamplingConfig):
    """How the evaluated model, and the one it is compared with, answer."""

    temperature: float = Field(default=0.01, ge=0, le=2)
    """0.01 in the paper; 0 is greedy."""
    max_tokens: int = Field(default=2048, ge=1)
    """Most new tokens of an answer. The paper does not state it."""


class PriceConfig(Config):
    """What the judge's endpoint asks for a million tokens, in any one currency."""

    prompt: float = Field(ge=0)
    """Per million tokens sent."""
    completion: float = Field(ge=0)
    """Per million tokens written."""


class ChatJudgeConfig(Config):
    """A judge behind an OpenAI-compatible chat endpoint: a vendor's, or `vllm serve`."""

    model: str
    """The judge's name at the endpoint, for example gpt-4o-2024-08-06."""
    base_url: str = "https://api.openai.com/v1"
    """The endpoint, up to and with /v1; a vLLM on this machine: http://127.0.0.1:8000/v1."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable with the key; null for an endpoint that asks for none."""
    api_key_file: Path | None = None
    """A file that holds the key alone; it goes before the environment variable."""
    verdict: Literal["tag", "logprobs"] = "tag"
    """`tag`: the judge writes its verdict (first, second, tie) in a pair of tags. `logprobs`: its
    first token is one of two labels, and the preference is weighted by their probabilities, as
    AlpacaEval 2 does; there are no ties then."""
    prompt: Path | None = None
    """A file with the slots {{instruction}}, {{output_1}} and {{output_2}}; null: ours."""
    labels: tuple[str, str] = ("m", "M")
    """With `logprobs`: the one-token labels that the prompt gives the two outputs."""
    top_logprobs: int = Field(default=5, ge=2, le=20)
    """With `logprobs`: how many tokens the endpoint is asked to list."""
    min_label_mass: float = Field(default=0.5, ge=0, le=1)
    """With `logprobs`: the two labels must hold this much of the probability, or the verdict
    counts as unparsable."""
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    """Null leaves it out of the request, which some models ask for."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a verdict; null: 400, and 1 with `logprobs`."""
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls that limit; OpenAI's reasoning models take the second only."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More fields of each request, for example {chat_template_kwargs: {enable_thinking: false}}."""
    concurrency: int = Field(default=8, ge=1, le=512)
    """Most requests at the endpoint at once."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds one attempt waits for the endpoint's next byte; nothing comes before the verdict is
    whole."""
    retries: int = Field(default=8, ge=0, le=100)
    """Attempts after the first, on 408, 409, 429, 5xx, timeouts and broken connections, with
    exponential backoff and jitter, or after as long as the endpoint asks for."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Seconds one verdict may take, with all its attempts."""
    price: PriceConfig | None = None
    """Prices, for the estimate and the bill; null: tokens only."""
    max_cost: float | None = Field(default=None, ge=0)
    """Refuse to start where the estimate is above this; needs `price`."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer that counts for the estimate; null: a token per four
    bytes, said with the estimate."""
    cache: Path | None = None
    """The replies paid so far; null: replies.jsonl in the evaluation's folder."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an endpoint's address is http(s)://HOST[:PORT]/v1")
        if parts.username is not None or parts.password is not None:
            raise ValueError("no key or password in the address: use api_key_env or api_key_file")
        return url.rstrip("/")

    @field_validator("extra_body")
    @classmethod
    def _only_more(cls, fields: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(fields.keys() & NOT_EXTRA)
        if taken:
            raise ValueError(f"{taken[0]} is no extra field: a request has one message, one choice"
                             " and no stream, and the rest has keys of its own")  # fmt: skip
        return fields

    @field_validator("labels")
    @classmethod
    def _two_words(cls, labels: tuple[str, str]) -> tuple[str, str]:
        if labels[0] == labels[1] or not all(label and label == label.strip() for label in labels):
            raise ValueError("labels must be two different words without white space around them")
        return labels

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_cost is not None and self.price is None:
            raise ValueError("max_cost needs price: without it the estimate is in tokens only")
        return self

    @property
    def token_limit(self) -> int:
        """Most tokens of a verdict."""
        return self.max_tokens or (1 if self.verdict == "logprobs" else 400)


class AlpacaEvalConfig(Config):
    """`selfplay evaluate alpaca-eval RUN|MODEL`."""

    judge: ChatJudgeConfig | None = None
    """The judge; null where a reward model judges."""
    instructions: Path | None = None
    """A local file of the instructions; null: AlpacaEval's 805, from the hub."""
    answers: AnswersConfig = AnswersConfig()
    """How answers are sampled."""
    base_annotations: Path | None = None
    """As in `AggregateConfig`."""
    length_control: LengthControlConfig = LengthControlConfig()
    """The length-controlled win rate."""
