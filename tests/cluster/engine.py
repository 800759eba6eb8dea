"""An actor that samples by seed and prompt alone; its module imports little, so it starts fast."""

from __future__ import annotations

import asyncio
import os

import numpy as np

from actors.records import Completion, GenerationRequest, Verdict


class Engine:
    """Samples by seed and prompt alone, as a seeded engine does."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = 0
        self.asleep = False
        self.calls: list[list[int | None]] = []

    async def describe(self) -> dict:
        return {"name": self.name, "pid": os.getpid()}

    async def generate(self, requests: list[GenerationRequest]) -> list[Completion]:
        assert not self.asleep
        self.calls.append([request.seed for request in requests])
        await asyncio.sleep(0.001 * (os.getpid() % 7))
        return [self._completion(request) for request in requests]

    def _completion(self, request: GenerationRequest) -> Completion:
        seed = 0 if request.seed is None else request.seed
        prompt = request.prompt_token_ids
        rng = np.random.default_rng([seed, *prompt])
        ids = rng.integers(1000, size=5).astype(np.int32)
        text = f" {'-'.join(map(str, ids))} "
        return Completion(prompt, ids, text, "stop", self.version, self.version, seed)

    async def score(self, query: str, answers: list[str], extra: object, iteration: int) -> object:
        if isinstance(extra, list):
            return tuple(
                Verdict(seed % 8, answer) for seed, answer in zip(extra, answers, strict=True)
            )
        return [float(len(answer)) for answer in answers]

    async def take(self, version: int) -> None:
        assert not self.asleep
        self.version = version

    async def held(self) -> tuple[int, bool]:
        return self.version, self.asleep

    async def sleep(self) -> None:
        self.asleep = True

    async def wake(self) -> None:
        self.asleep = False

    async def asked(self) -> list[list[int | None]]:
        return self.calls

    async def stop(self) -> None: ...
