"""A preference reward model as the judge: the output that it scores higher is preferred.

Scores are kept as they come, like a chat judge's replies: started again, it scores what is missing.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from evaluation.alpaca.files import Row
from evaluation.alpaca.judge import Judged
from evaluation.alpaca.outputs import Pair
from evaluation.alpaca.store import Reply, ReplyStore, request_key
from evaluation.alpaca.verdicts import DRAW


class Scorer(Protocol):
    """Scores answers to one query: a fleet of reward actors, or one model."""

    async def score(self, query: str, answers: list[str]) -> npt.NDArray[np.float64]:
        """Return the scores [len(answers)]; NaN for an answer that cannot be scored."""
        ...


@dataclass(frozen=True)
class RewardJudge:
    """A scorer and the name it has among the verdicts.

    `asked` is all that its scores depend on beside the texts, its weights first, as JSON.
    """

    name: str
    asked: Mapping[str, Any]
    scorer: Scorer


async def judge_by_reward(
    pairs: Sequence[Pair],
    names: tuple[str, str],
    judge: RewardJudge,
    cache: Path,
    say: Callable[[str], None],
) -> Judged:
    """Rows of `annotations.json` for all pairs; a pair without both scores has preference null.

    Args:
        pairs: What to compare.
        names: The generators of outputs 1 (the reference) and 2 (the evaluated model).
        judge: The reward model.
        cache: The file of scores; a pair whose scores are in it is not scored again.
        say: Takes a line for the user on what there is to score.

    Raises:
        UserError: The reward model cannot be started, or the cache cannot be used.
    """
    keys = {pair: _key(pair, judge) for pair in pairs if not pair.identical}
    with ReplyStore(cache, "name another folder (--out)") as store:
        todo = {pair: key for pair, key in keys.items() if store.get(key) is None}
        known = len(keys) - len(todo)
        say(f"{judge.name}: scores {len(todo)} pairs, {known} are in {cache} already")
        await _score(todo, judge.scorer, store)
        replies = {pair: reply for pair, key in keys.items() if (reply := store.get(key))}
    rows = [_row(pair, names, judge.name, _scores(replies.get(pair))) for pair in pairs]
    unscored = sum(row["preference"] is None for row in rows)
    account = {
        "model": judge.name,
        "n_pairs": len(pairs),
        "n_identical": len(pairs) - len(keys),
        "n_judged_now": len(todo),
        "n_judged_before": known,
        "n_unscored": unscored,
    }
    notes = [f"{unscored} pairs could not be scored and count in no rate"] if unscored else []
    return Judged(rows, account, notes, None)


def _key(pair: Pair, judge: RewardJudge) -> str:
    outputs = [pair.output_1, pair.output_2]
    return request_key(
        {"asked": dict(judge.asked), "query": pair.instruction.text, "answers": outputs}
    )


async def _score(todo: Mapping[Pair, str], scorer: Scorer, store: ReplyStore) -> None:
    """Score what is missing; scores are on disk when they are there, whatever happens after."""

    async def work(pair: Pair, key: str) -> None:
        scores = await scorer.score(pair.instruction.text, [pair.output_1, pair.output_2])
        store.put(key, Reply(json.dumps([*map(float, scores)])))

    try:
        async with asyncio.TaskGroup() as group:
            for pair, key in todo.items():
                group.create_task(work(pair, key))
    except ExceptionGroup as several:
        raise several.exceptions[0] from None  # an engine that cannot start: the same for all pairs


def _scores(reply: Reply | None) -> tuple[float, float]:
    """(score of output 1, of output 2); those of identical outputs, which nobody scores, are 0."""
    if reply is None:
        return 0.0, 0.0
    score_1, score_2 = json.loads(reply.text)
    return score_1, score_2


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
