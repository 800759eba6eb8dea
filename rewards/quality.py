"""R_Q, the quality self-reward: the frozen reference model grades each answer by a rubric."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from actors.chat import ChatEncoder, load_tokenizer
from actors.engine import Engine
from actors.member import FleetMember, Post
from actors.records import Completion, GenerationRequest, Sampling, TokenIds, Verdict
from configs.errors import UserError
from configs.rewards import QualityConfig
from rewards.member import SECONDS, VERDICTS
from rewards.verdict import QualityPrompt, parse_verdict

log = logging.getLogger(__name__)


class Writer(Protocol):
    """The part of `actors.engine.Engine` that a judge needs."""

    def submit(self, requests: Sequence[GenerationRequest]) -> Future[list[Completion]]:
        """Sample every request."""
        ...


class QualityJudge:
    """Asks the reference model for verdicts, and again for those that cannot be parsed."""

    def __init__(self, writer: Writer, encoder: ChatEncoder, config: QualityConfig) -> None:
        """Take the reference's engine, its chat encoder and the section `rewards.quality`.

        Raises:
            UserError: As `rubric` does.
        """
        self._writer = writer
        self._encoder = encoder
        self._prompt = rubric(config, encoder)
        self._context = config.fleet.context
        self._retries = config.retries
        sampling = config.sampling
        self._first = Sampling(
            sampling.temperature, sampling.top_p, sampling.max_tokens, tuple(sampling.stop)
        )

    def prompt(self, query_text: str, answer_text: str) -> TokenIds:
        """Return the prompt that asks for the verdict on one answer."""
        return self._encoder.encode(self._prompt.messages(query_text, answer_text))

    async def score(
        self, query_text: str, answer_texts: Sequence[str], seeds: Sequence[int]
    ) -> tuple[Verdict, ...]:
        """Return the verdict on each of the G answers.

        The first attempt samples as configured, with `seeds` [G], and at temperature 0 once for all
        answers that are the same; an unparsable verdict is asked for again at temperature 1, with
        `retry_seed`. The score is None where all attempts fail, or where the pair leaves no room
        for a verdict in the context.
        """
        verdicts = [Verdict(None, "")] * len(answer_texts)
        outcomes = ["too_long"] * len(answer_texts)
        prompts = [self.prompt(query_text, answer) for answer in answer_texts]
        asked = [i for i, prompt in enumerate(prompts) if len(prompt) < self._context]
        for attempt in range(1 + self._retries):
            requests = [self._request(prompts[i], seeds[i], attempt) for i in asked]
            written = await self._written(requests)
            for i, one in zip(asked, written, strict=True):
                # Cut off, it might end with a verdict that it only quotes.
                score = parse_verdict(one.text) if one.finish_reason == "stop" else None
                verdicts[i] = Verdict(score, one.text)
                outcomes[i] = _outcome(verdicts[i], attempt)
            asked = [i for i in asked if verdicts[i].score is None]
            if not asked:
                break
        _count(outcomes)
        return tuple(verdicts)

    async def _written(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Return what the judge writes to each request."""
        # Without chance, equal prompts have equal verdicts, whatever their seeds.
        keys = [
            r.prompt_token_ids.tobytes() if r.sampling.temperature == 0 else i
            for i, r in enumerate(requests)
        ]
        distinct = dict(zip(keys, requests, strict=True))
        completions = await asyncio.wrap_future(self._writer.submit(list(distinct.values())))
        written = dict(zip(distinct, completions, strict=True))
        return [written[key] for key in keys]

    def _request(self, prompt: TokenIds, seed: int, attempt: int) -> GenerationRequest:
        if attempt == 0:
            return GenerationRequest(prompt, self._first, seed)
        return GenerationRequest(
            prompt, replace(self._first, temperature=1.0), retry_seed(seed, attempt)
        )


class QualityActor(FleetMember):
    """A judge as a Ray actor; `ray.remote(QualityActor)` makes it one."""

    def __init__(
        self,
        model_path: str,
        config: QualityConfig,
        *,
        post: Post,
        chat_date: datetime.date,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Start the reference's engine.

        Args:
            model_path: Folder or hub id of the reference, the model that training started from.
            config: The section `rewards.quality`.
            post: Who it is, and where its metrics and its log go.
            chat_date: The date that chat templates show.
            revision: Of the hub repository.
            trust_remote_code: Run model code that comes with the checkpoint.
        """
        super().__init__(post)
        encoder = ChatEncoder(load_tokenizer(model_path, revision, trust_remote_code), chat_date)
        self._engine = Engine(
            model_path,
            config.fleet,
            section="rewards.quality.fleet",
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        self._judge = QualityJudge(self._engine, encoder, config)

    async def score(
        self,
        query_text: str,
        answer_texts: list[str],
        seeds: list[int],
        iteration: int | None = None,
    ) -> tuple[Verdict, ...]:
        """Return the verdict on each of the G answers; see `QualityJudge.score`. `iteration`, if
        there is one, stands in the log from now on."""
        self.note_iteration(iteration)
        with SECONDS.labels("quality").time():
            return await self._judge.score(query_text, answer_texts, seeds)

    async def stop(self) -> None:
        """Stop the engine; what is still pending fails."""
        await asyncio.to_thread(self._engine.close)


def rubric(config: QualityConfig, encoder: ChatEncoder) -> QualityPrompt:
    """Return the rubric of the section `rewards.quality`.

    Raises:
        UserError: The prompt file is not usable, or the rubric leaves no room for texts and a
            verdict in the context.
    """
    prompt, context = QualityPrompt(config.prompt), config.fleet.context
    needed = len(encoder.encode(prompt.messages("", ""))) + config.sampling.max_tokens
    if needed >= context:
        raise UserError(
            f"rewards.quality.fleet.context {context} is too small: the rubric and"
            f" rewards.quality.sampling.max_tokens alone take {needed} tokens"
        )
    return prompt


def retry_seed(seed: int, attempt: int) -> int:
    """Return the seed 0..2⁶³−1 of a verdict's attempt 1, 2, …: a hash of its first seed."""
    digest = hashlib.blake2b(f"{seed}:{attempt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _outcome(verdict: Verdict, attempt: int) -> str:
    if verdict.score is None:
        return "unparsable"
    return "first" if attempt == 0 else "retried"


def _count(outcomes: Sequence[str]) -> None:
    for outcome in outcomes:
        VERDICTS.labels(outcome).inc()
    too_long = outcomes.count("too_long")
    if too_long:
        log.warning(
            "rewards.quality: %d of %d answers leave no room for a verdict: raise"
            " rewards.quality.fleet.context",
            too_long,
            len(outcomes),
        )
