"""Answers to the instructions, each made once and kept: a second start judges the same texts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.generator import Generator
from actors.records import NO_ROOM, GenerationRequest, Sampling, TokenIds
from evaluation.alpaca.config import AnswersConfig
from evaluation.alpaca.instructions import Instruction
from evaluation.alpaca.outputs import Outputs, read_outputs, write_outputs
from evaluation.alpaca.store import Reply, ReplyStore, request_key
from evaluation.asking import endings, parts

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Contestant:
    """A model that answers.

    `name` is for people. `asked` is all that its answers depend on beside prompt and sampling, its
    weights first, as JSON. `encode` makes the prompt of an instruction.
    """

    name: str
    asked: Mapping[str, Any]
    generator: Generator
    encode: Callable[[str], TokenIds]


async def outputs_of(
    contestant: Contestant | Path,
    instructions: Sequence[Instruction],
    config: AnswersConfig,
    written: Path,
    say: Callable[[str], None],
    first_seed: int = 0,
) -> Outputs:
    """The answers of a model: those that are kept, and the others made; all go to `written`.

    Each is kept as it comes, in answers.jsonl beside `written`, under all that it comes from: it is
    never taken for one of another model, prompt or setting. The seed of the i-th is `first_seed` +
    i. A path instead of a model is a file of answers that exist; it is read as it is.
    """
    if isinstance(contestant, Path):
        return read_outputs(contestant)
    requests = _requests(contestant, instructions, config, first_seed)
    keys = [_key(contestant, request) for request in requests]
    kept = written.with_name(ANSWERS)
    with ReplyStore(kept, "name another folder (--out)") as store:
        todo = [(k, r) for k, r in zip(keys, requests, strict=True) if store.get(k) is None]
        _announce(contestant.name, len(todo), len(requests) - len(todo), kept, say)
        unasked = await _answer(contestant.generator, todo, store)
        replies = {
            instruction.text: reply
            for instruction, key in zip(instructions, keys, strict=True)
            if (reply := store.get(key)) is not None
        }
    outputs = Outputs(
        contestant.name,
        # AlpacaEval strips outputs too.
        {text: reply.text.strip() for text, reply in replies.items()},
        endings=endings([*(str(reply.finish_reason) for reply in replies.values()), *unasked]),
    )
    write_outputs(written, outputs, instructions)
    return outputs


def _announce(name: str, todo: int, known: int, kept: Path, say: Callable[[str], None]) -> None:
    if todo:
        more = f", {known} are in {kept} already" if known else ""
        say(f"{name}: answers {todo} instructions{more}")
    else:
        say(f"{name}: its answers are in {kept} already")


def _requests(
    contestant: Contestant,
    instructions: Sequence[Instruction],
    config: AnswersConfig,
    first_seed: int,
) -> list[GenerationRequest]:
    sampling = Sampling(config.temperature, config.top_p, config.max_tokens, tuple(config.stop))
    return [
        GenerationRequest(contestant.encode(instruction.text), sampling, seed)
        for seed, instruction in enumerate(instructions, first_seed)
    ]


def _key(contestant: Contestant, request: GenerationRequest) -> str:
    sampling = request.sampling
    return request_key(
        {
            "asked": dict(contestant.asked),
            "prompt": request.prompt_token_ids.tolist(),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop": sampling.stop,
            "seed": request.seed,
        }
    )


async def _answer(
    generator: Generator, todo: Sequence[tuple[str, GenerationRequest]], store: ReplyStore
) -> list[str]:
    """Make what is missing; each answer is on disk when it is there, whatever happens after.

    Returns:
        The reasons of those that could not be asked, which are kept nowhere.
    """
    unasked: list[str] = []

    async def work(part: Sequence[tuple[str, GenerationRequest]]) -> None:
        made = await generator.generate([request for _, request in part])
        for (key, _), completion in zip(part, made, strict=True):
            if completion.finish_reason == NO_ROOM:
                unasked.append(NO_ROOM)
            else:
                tokens = len(completion.prompt_token_ids), len(completion.token_ids)
                store.put(key, Reply(completion.text, completion.finish_reason, (), *tokens))

    try:
        async with asyncio.TaskGroup() as group:
            for part in parts(todo):
                group.create_task(work(part))
    except ExceptionGroup as several:
        raise several.exceptions[0] from None  # engines that cannot start: the same for all parts
    return unasked
