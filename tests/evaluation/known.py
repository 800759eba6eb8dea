"""A generator whose answers are known: by the query's text, found in the encoded prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np

from actors.records import Completion, GenerationRequest, Sampling, TokenIds

SAMPLING = Sampling(temperature=0.01, max_tokens=64)


class Known:
    """Answers each query, in its own time."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self._answers = answers

    async def generate(self, requests: list[GenerationRequest]) -> list[Completion]:
        await asyncio.sleep(0.01 / len(requests))
        assert all(request.sampling == SAMPLING for request in requests)
        ids = np.zeros(1, np.int32)
        texts = [self._answers["".join(map(chr, r.prompt_token_ids))] for r in requests]
        return [Completion(r.prompt_token_ids, ids, t, "stop", 0, 0, 0)
                for r, t in zip(requests, texts, strict=True)]  # fmt: skip


def encode(text: str) -> TokenIds:
    """One id per character."""
    return np.array([ord(c) for c in text], np.int32)
