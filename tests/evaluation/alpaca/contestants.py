"""Models whose answers are known, and an evaluation of them, for the tests of `alpaca-eval`."""

from __future__ import annotations

import asyncio
import math

import numpy as np

from actors.records import Completion
from evaluation.alpaca.evaluate import Contestant, evaluate
from evaluation.alpaca.instructions import SUBSETS
from tests.evaluation.alpaca.judge_server import GOOD

ROWS = [{"instruction": f"question {i}", "dataset": SUBSETS[i % 5]} for i in range(40)]


class Answers:
    """Says a good word where its rule holds; remembers what it was asked; may break in between."""

    def __init__(self, rule, breaks_after=math.inf) -> None:
        self.rule = rule
        self.breaks_after = breaks_after
        self.requests = []

    async def generate(self, requests):
        await asyncio.sleep(0)
        if len(self.requests) + len(requests) > self.breaks_after:
            await asyncio.sleep(0.05)
            raise RuntimeError("the engine is gone")
        self.requests += requests
        return [self._answer(request) for request in requests]

    def _answer(self, request) -> Completion:
        number = int(request.prompt_token_ids[-1])
        text = f"  a {GOOD if self.rule(number) else 'plain'} answer, seed {request.seed}\n"
        ids = request.prompt_token_ids
        return Completion(ids, ids, text, "stop", 0, 0, request.seed)


def encode(text: str) -> np.ndarray:
    return np.array([1, int(text.split()[-1])], np.int32)


def contestant(name, rule, weights=None, **answers) -> Contestant:
    return Contestant(name, {"weights": weights or name}, Answers(rule, **answers), encode)


def run(config, model, against, out, **more):
    more.setdefault("say", lambda line: None)
    return asyncio.run(evaluate(config, model, against, out, **more))
