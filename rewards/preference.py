"""The preference part of R: a one-label sequence classifier's raw score of (query, answer).

The classifier runs on vLLM's pooling runner and scores as Hugging Face does: the model's own chat
template around the pair, and the logit at the last token that is not padding.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from transformers import AutoConfig, PretrainedConfig

from actors.chat import ChatEncoder, Message, Plain, load_tokenizer
from actors.engine import Engine, check_model
from actors.member import FleetMember, Post
from actors.records import TokenIds
from configs.errors import UserError
from configs.rewards import PreferencePart
from rewards.member import ANSWERS, SECONDS

log = logging.getLogger(__name__)


class PairEncoder:
    """A pair as a reward model reads it: through the model's own chat template."""

    def __init__(self, part: PreferencePart, chat_date: datetime.date) -> None:
        """Read the model's configuration and tokenizer, not its weights.

        Raises:
            UserError: There is no such model, it is no classifier with one label, it has no chat
                template, or its context is too small for any pair.
        """
        section = f"rewards.parts.{part.name}"
        model_config = _one_label_config(part.model, f"{section}.model")
        # vLLM pools the last token whatever it is.
        self._pad_token_id = model_config.get_text_config().pad_token_id
        self._encoder = ChatEncoder(load_tokenizer(part.model), chat_date)
        needed = len(self.encode("", ""))
        if needed >= part.fleet.context:
            raise UserError(
                f"{section}.fleet.context {part.fleet.context} is too small: the chat template"
                f" alone takes {needed} tokens"
            )

    def encode(self, query_text: str, answer_text: str) -> TokenIds:
        """Return the ids that are scored, up to the token that Hugging Face pools."""
        ids = self._encoder.encode(
            [Message("user", (Plain(query_text),)), Message("assistant", (Plain(answer_text),))],
            generation_prompt=False,
        )
        end = len(ids)
        while end > 1 and ids[end - 1] == self._pad_token_id:
            end -= 1
        return ids[:end]


class PreferenceModel:
    """A reward model on an engine in this process; calls overlap and are batched together."""

    def __init__(self, part: PreferencePart, chat_date: datetime.date) -> None:
        """Check the model (see `PairEncoder`) and start its engine."""
        self._part = part
        self._pairs = PairEncoder(part, chat_date)
        section = f"rewards.parts.{part.name}.fleet"
        self._engine = Engine(part.model, part.fleet, section=section, runner="pooling")

    def prompt(self, query_text: str, answer_text: str) -> TokenIds:
        """Return the ids that are scored; see `PairEncoder.encode`."""
        return self._pairs.encode(query_text, answer_text)

    async def score(self, query_text: str, answer_texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the scores [G]; NaN where the pair does not fit the context.

        NaN because a score of the pair's beginning would be of another answer; it makes the game
        drop the group and count it.
        """
        prompts = [self.prompt(query_text, answer) for answer in answer_texts]
        fits_G = np.array([len(prompt) <= self._part.fleet.context for prompt in prompts])
        self._tell(prompts, fits_G)
        fitting = [prompt for prompt, fits in zip(prompts, fits_G, strict=True) if fits]
        labels = await asyncio.wrap_future(self._engine.classify(fitting))
        scores_G = np.full(len(prompts), math.nan)
        scores_G[fits_G] = [label.item() for label in labels]
        return scores_G

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()

    def _tell(self, prompts: Sequence[TokenIds], fits_G: npt.NDArray[np.bool_]) -> None:
        name, too_long = self._part.name, int((~fits_G).sum())
        ANSWERS.labels(name, "scored").inc(len(prompts) - too_long)
        ANSWERS.labels(name, "too_long").inc(too_long)
        if too_long:
            log.warning(
                "rewards.parts.%s: %d of %d answers have no score: the longest takes %d tokens with"
                " its query, more than the part's fleet.context",
                name,
                too_long,
                len(prompts),
                max(map(len, prompts)),
            )


class PreferenceActor(FleetMember):
    """A preference model as a Ray actor; `ray.remote(PreferenceActor)` makes it one."""

    def __init__(self, part: PreferencePart, *, post: Post, chat_date: datetime.date) -> None:
        """Start the model's engine; see `PreferenceModel`."""
        super().__init__(post)
        self._seconds = SECONDS.labels(part.name)
        self._model = PreferenceModel(part, chat_date)

    async def score(
        self,
        query_text: str,
        answer_texts: list[str],
        reference: str | None,
        iteration: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """Return the scores [G]; NaN where the pair does not fit the context. `iteration`, if there
        is one, stands in the log from now on."""
        del reference  # a preference model judges by itself
        self.note_iteration(iteration)
        with self._seconds.time():
            return await self._model.score(query_text, answer_texts)

    async def stop(self) -> None:
        """Stop the engine; what is still pending fails."""
        await asyncio.to_thread(self._model.close)


def _one_label_config(model: str, key: str) -> PretrainedConfig:
    """Return the model's configuration, or raise UserError where it is no one-label classifier."""
    check_model(model, None, False, key)
    config = AutoConfig.from_pretrained(model)
    architectures = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise UserError(
            f"{key}: {model!r} is {' or '.join(architectures) or 'of no named architecture'}, not"
            " a sequence classifier: name a reward model with one label"
        )
    if config.num_labels != 1:
        raise UserError(
            f"{key}: {model!r} has {config.num_labels} labels, and a reward is one number: name a"
            " sequence classifier with one label"
        )
    return config
