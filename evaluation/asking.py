"""What stands between an evaluation and a fleet, and what became of the prompts.

A call to a fleet has a deadline, after which its engine counts as hung. Were everything asked at
once, the clock of each call would run while it waits inside the engine behind all the others, and
enough work would end a healthy engine. So no more is asked than the engines decode at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from actors.generator import Generator
from actors.records import NO_ROOM, NO_SEED, Completion, GenerationRequest

PER_CALL = 8
"""Requests of one call: so few that none waits long for the slowest, so many that calls cost
little."""

T = TypeVar("T")


def parts(items: Sequence[T], size: int = PER_CALL) -> list[Sequence[T]]:
    """The items in parts of `size`, the last one with what is left."""
    return [items[i : i + size] for i in range(0, len(items), size)]


class Paced:
    """A `Generator` that asks another one for `sequences` × `engines` completions at once at most.

    `sequences` are those that one engine decodes at once.
    """

    def __init__(self, generator: Generator, sequences: int, engines: int) -> None:
        self._generator = generator
        self._per_call = min(PER_CALL, sequences)
        self._calls = asyncio.Semaphore(sequences // self._per_call * engines)

    async def generate(self, requests: list[GenerationRequest]) -> list[Completion]:
        """Return one completion per request, in their order."""
        calls = (self._call([*part]) for part in parts(requests, self._per_call))
        return [completion for made in await asyncio.gather(*calls) for completion in made]

    async def _call(self, requests: list[GenerationRequest]) -> list[Completion]:
        async with self._calls:
            return await self._generator.generate(requests)


@dataclass(frozen=True)
class Fitting:
    """A `Generator` that does not ask what leaves no room for an answer in the context.

    The completion of such a prompt is empty, and its `finish_reason` is NO_ROOM.
    """

    generator: Generator
    context: int

    async def generate(self, requests: list[GenerationRequest]) -> list[Completion]:
        """Return one completion per request, in their order."""
        fits = [len(request.prompt_token_ids) < self.context for request in requests]
        pairs = [*zip(requests, fits, strict=True)]
        made = iter(await self.generator.generate([request for request, fit in pairs if fit]))
        return [next(made) if fit else _unasked(request) for request, fit in pairs]


def _unasked(request: GenerationRequest) -> Completion:
    seed = NO_SEED if request.seed is None else request.seed
    nothing = np.zeros(0, np.int32)
    return Completion(request.prompt_token_ids, nothing, "", NO_ROOM, 0, 0, seed)


def endings(finish_reasons: Iterable[str]) -> dict[str, int]:
    """How many answers were cut by a limit of tokens, and how many prompts left no room for one."""
    found = [*finish_reasons]
    return {"n_cut": found.count("length"), "n_no_room": found.count(NO_ROOM)}


def ending_notes(counts: dict[str, int]) -> tuple[str, ...]:
    """Sentences on `endings`, where there is something to say."""
    said = {
        "n_cut": "answers were cut by sampling.max_tokens or rollout.context",
        "n_no_room": "prompts leave no room for an answer in rollout.context: they were not asked"
        " and count as wrong",
    }
    return tuple(f"{counts[key]} {text}" for key, text in said.items() if counts[key])
