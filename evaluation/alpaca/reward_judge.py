"""A preference reward model as the judge: the output that it scores higher is preferred."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evaluation.alpaca.files import Row
from evaluation.alpaca.judge import Judged
from evaluation.alpaca.outputs import Pair
from evaluation.alpaca.verdicts import DRAW


class Scorer(Protocol):
    """Scores answers to one query: a fleet of reward actors, or one model."""

    async def score(self, query: str, answers: list[str]) -> npt.NDArray[np.float64]:
        """Return the scores [len(answers)]; NaN for an answer that cannot be scored."""
        ...


@dataclass(frozen=True)
class RewardJudge:
    """A scorer and the name it has among the verdicts."""

    name: str
    scorer: Scorer


async def judge_by_reward(
    pairs: Sequence[Pair], names: tuple[str, str], judge: RewardJudge
) -> Judged:
    """Rows of `annotations.json` for all pairs; a pair without both scores has preference null."""
    scores = await asyncio.gather(*(_scores(pair, judge.scorer) for pair in pairs))
    rows = [_row(p, names, judge.name, s) for p, s in zip(pairs, scores, strict=True)]
    unscored = sum(row["preference"] is None for row in rows)
    account = {
        "model": judge.name,
        "n_pairs": len(pairs),
        "n_identical": sum(pair.identical for pair in pairs),
        "n_unscored": unscored,
    }
    notes = [f"{unscored} pairs could not be scored and count in no rate"] if unscored else []
    return Judged(rows, account, notes, None)


async def _scores(pair: Pair, scorer: Scorer) -> tuple[float, float]:
    """(score of output 1, of output 2)."""
    if pair.identical:
        return 0.0, 0.0
    scores = await scorer.score(pair.instruction.text, [pair.output_1, pair.output_2])
    return float(scores[0]), float(scores[1])


def _row(pair: Pair, names: tuple[str, str], judge: str, scores: tuple[float, float]) -> Row:
    return {
        "instruction": pair.instruction.text,
        "output_1": pair.output_1,
        "generator_1": names[0],
        "dataset": pair.instruction.subset,
        "output_2": pair.output_2,
        "generator_2": names[1],
        "annotator": judge,
        "preference": _preference(*scores),
        "scores": None if pair.identical or any(map(math.isnan, scores)) else list(scores),
    }


def _preference(score_1: float, score_2: float) -> float | None:
    if math.isnan(score_1) or math.isnan(score_2):
        return None
    if score_1 == score_2:
        return DRAW
    return 2.0 if score_2 > score_1 else 1.0
