"""Pairs whose better output is known, and a judge asked for them, for the tests of the judge."""

from __future__ import annotations

import asyncio

from evaluation.alpaca.config import ChatJudgeConfig
from evaluation.alpaca.instructions import Instruction
from evaluation.alpaca.judge import Judged, judge_pairs
from evaluation.alpaca.outputs import Pair
from tests.evaluation.alpaca.judge_server import GOOD

NAMES = ("base", "mine")
PAIRS = [
    Pair(
        Instruction(f"question {i}", "koala"),
        f"a {'bad' if i % 2 else GOOD} answer to {i}",
        f"a {GOOD if i % 2 else 'bad'} answer to {i}",
    )
    for i in range(12)
]
EXPECTED = [2.0 if i % 2 else 1.0 for i in range(12)]


def judge(url, cache, pairs=PAIRS, say=lambda line: None, **settings) -> Judged:
    config = ChatJudgeConfig.model_validate(
        {"model": "judge", "base_url": url, "api_key_env": "JUDGE_KEY", "concurrency": 3,
         "timeout_s": 5, "retries": 3, **settings}
    )  # fmt: skip
    return asyncio.run(judge_pairs(pairs, NAMES, config, cache, say))


def preferences(judged: Judged):
    return [row["preference"] for row in judged.rows]
