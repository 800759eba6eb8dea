"""The sample games of the report: the Challenger's queries over time, with answers and scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from evaluation.run_files import Row, read_games

MOMENTS = 8
"""Iterations, spread over the run, whose games are shown."""
QUERIES, ANSWERS = 2, 3
"""Games of each such iteration, and answers of each game: best, middle, worst."""
REJECTED_SHOWN = 3
COLUMNS = [
    "iteration", "group_id", "role", "task", "text", "finish_reason", "reward", "reward_parts",
    "quality", "verdict_text", "advantage", "admitted", "reject_reason",
]  # fmt: skip


@dataclass(frozen=True)
class Game:
    """A query and some of its answers, as rows of the ledger."""

    query: Row
    answers: list[Row]


@dataclass(frozen=True)
class Moment:
    """Games of one iteration, and queries the gate rejected in it.

    `ranked`: the games are those of the highest and the lowest Challenger's reward, not the first.
    """

    iteration: int
    games: list[Game]
    rejected: list[Row]
    ranked: bool


def spread(iterations: int, moments: int = MOMENTS) -> list[int]:
    """Some of the iterations, evenly over the run, the first and the last among them."""
    return sorted({int(i) for i in np.linspace(0, iterations - 1, moments).round()})


def moments(run_dir: Path, iterations: Iterable[int]) -> list[Moment]:
    """Games of these iterations; one whose games are not there is left out."""
    rows = read_games(run_dir, iterations, COLUMNS)
    by_iteration = groupby(rows, key=lambda row: row["iteration"])
    return [_moment(iteration, list(found)) for iteration, found in by_iteration]


def _moment(iteration: int, rows: list[Row]) -> Moment:
    answers: dict[str, list[Row]] = {}
    for row in rows:
        if row["role"] == "solver":
            answers.setdefault(row["group_id"], []).append(row)
    queries = [row for row in rows if row["role"] == "challenger"]
    played = [row for row in queries if row["group_id"] in answers]
    rewarded = [row for row in played if row["reward"] is not None]
    shown = _ends(rewarded) if rewarded else played[:QUERIES]
    games = [Game(row, _best_to_worst(answers[row["group_id"]])) for row in shown]
    rejected = [row for row in queries if not row["admitted"]][:REJECTED_SHOWN]
    return Moment(iteration + 1, games, rejected, ranked=bool(rewarded))


def _ends(queries: list[Row]) -> list[Row]:
    """The query whose reward was highest, and the one whose was lowest."""
    ordered = sorted(queries, key=lambda row: -row["reward"])
    return [*ordered[: QUERIES - 1], *ordered[QUERIES - 1 :][-1:]]


def _best_to_worst(answers: list[Row]) -> list[Row]:
    """The best, the middle and the worst answer by reward."""
    ordered = sorted(answers, key=lambda row: -(row["reward"] or 0.0))
    return [ordered[place] for place in spread(len(ordered), ANSWERS)]
