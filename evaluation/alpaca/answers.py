"""Answers to the instructions, made once and kept: a second start judges the same texts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.generator import Generator
from actors.records import GenerationRequest, Sampling, TokenIds
from evaluation.alpaca.config import AnswersConfig
from evaluation.alpaca.instructions import Instruction
from evaluation.alpaca.outputs import Outputs, read_outputs, write_outputs

PER_CALL = 32
"""Instructions of one call to the generator, so that a fleet shares them."""


@dataclass(frozen=True)
class Contestant:
    """A model that answers: `name` tells its weights apart (a run's with its iteration).

    `encode` makes the prompt of an instruction.
    """

    name: str
    generator: Generator
    encode: Callable[[str], TokenIds]


async def outputs_of(
    contestant: Contestant | Path,
    instructions: Sequence[Instruction],
    config: AnswersConfig,
    kept: Path,
    say: Callable[[str], None],
    first_seed: int = 0,
) -> Outputs:
    """The answers of a model: those in `kept` where it holds them all, else made and kept there.

    The seed of the i-th answer is `first_seed` + i. A path instead of a model is a file of answers
    that exist; it is read as it is.
    """
    if isinstance(contestant, Path):
        return read_outputs(contestant)
    if kept.is_file():
        found = read_outputs(kept)
        if found.generator == contestant.name and _whole(found, instructions):
            say(f"{contestant.name}: its answers are in {kept} already")
            return found
    say(f"{contestant.name}: answers {len(instructions)} instructions")
    outputs = await _answered(contestant, instructions, config, first_seed)
    write_outputs(kept, outputs, instructions)
    return outputs


def _whole(outputs: Outputs, instructions: Sequence[Instruction]) -> bool:
    return outputs.answers.keys() == {instruction.text for instruction in instructions}


async def _answered(
    contestant: Contestant,
    instructions: Sequence[Instruction],
    config: AnswersConfig,
    first_seed: int,
) -> Outputs:
    sampling = Sampling(config.temperature, config.top_p, config.max_tokens, tuple(config.stop))
    requests = [
        GenerationRequest(contestant.encode(instruction.text), sampling, seed)
        for seed, instruction in enumerate(instructions, first_seed)
    ]
    parts = [requests[i : i + PER_CALL] for i in range(0, len(requests), PER_CALL)]
    made = await asyncio.gather(*(contestant.generator.generate(part) for part in parts))
    # AlpacaEval strips outputs too.
    texts = [completion.text.strip() for part in made for completion in part]
    pairs = zip(instructions, texts, strict=True)
    return Outputs(contestant.name, {instruction.text: text for instruction, text in pairs})
