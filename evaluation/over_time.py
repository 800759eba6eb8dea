"""What happened in a run, iteration by iteration: the curves by which methods are compared.

How each figure is defined is said in docs/replication.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.run_files import Row, read_games, read_history

Rows = Sequence[Mapping[str, Any]]

LEARNER = ("kl_solver", "kl_challenger", "entropy")
DIVERSITY = ("distinct_2", "self_bleu", "novelty")
CURVES = (
    *("v", "informative", "quality", "tasks", "admitted", "distinct", "new"),
    *(*DIVERSITY, *LEARNER),
)
"""What `over_time` follows."""


@dataclass(frozen=True)
class Rules:
    """What a world of its own can say exactly of any text."""

    quality: Callable[[str, str], float]
    """(query, answer) → points, 0…7."""
    is_task: Callable[[str], bool]
    """Whether a query is a task that has an answer."""


def over_time(run_dir: Path, rules: Rules | None = None) -> dict[str, list[float | None]]:
    """By iteration, each of `CURVES`; None where there is nothing to measure.

    v: the solve rate of the trained queries. informative: share of them whose answers differ in R,
    without which the Solver learns nothing of R from them. quality: mean of `rules.quality` over
    their answers, without rules the judge's R_Q. tasks: share of the trained queries that are
    tasks, None without rules. admitted: share of the sampled queries that the gate let through.
    distinct: share of different texts among the sampled. new: share of the trained queries that
    were not trained in an earlier iteration. distinct_2, self_bleu, novelty: of the trained
    queries, as docs/stability.md has them.
    """
    history = read_history(run_dir)
    seen: set[str] = set()
    curves: dict[str, list[float | None]] = {name: [] for name in CURVES}
    for record in history:
        games = _games(run_dir, record["iteration"])
        queries, answers = _trained(games)
        made = {
            "v": record["v"],
            "informative": _informative(games),
            "quality": _quality(record, queries, answers, rules),
            "tasks": rules and mean_known([float(rules.is_task(q)) for q in queries.values()]),
            "admitted": _share(record["admitted"], sum(record["rejected"].values())),
            "distinct": record["distinct_queries"],
            "new": _new(set(queries.values()), seen),
            **{name: record.get("diversity", {}).get(name) for name in DIVERSITY},
            **{name: record["learner"].get(name) for name in LEARNER},
        }
        seen.update(queries.values())
        for name, value in made.items():
            curves[name].append(value)
    return curves


def early_and_late(curve: Sequence[float | None], share: float = 0.2) -> dict[str, float | None]:
    """Means over the first and the last fifth of a curve, what is None left out."""
    width = max(1, round(share * len(curve)))
    return {"first": mean_known(curve[:width]), "last": mean_known(curve[-width:])}


def _games(run_dir: Path, iteration: int) -> list[Row]:
    columns = ["role", "group_id", "text", "admitted", "reward_parts"]
    return [one for one in read_games(run_dir, [iteration], columns) if one["admitted"]]


def _trained(games: Rows) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The trained queries by group, and (group, answer) of each answer."""
    queries = {one["group_id"]: one["text"] for one in games if one["role"] == "challenger"}
    answers = [(one["group_id"], one["text"]) for one in games if one["role"] == "solver"]
    return queries, answers


def _informative(games: Rows) -> float | None:
    """The share of the groups of which two answers differ in a part of R."""
    parts: dict[str, set[tuple[float, ...]]] = defaultdict(set)
    for one in games:
        if one["role"] == "solver":
            parts[one["group_id"]].add(tuple(one["reward_parts"].values()))
    return mean_known([float(len(each) > 1) for each in parts.values()])


def _quality(
    record: Row,
    queries: Mapping[str, str],
    answers: Sequence[tuple[str, str]],
    rules: Rules | None,
) -> float | None:
    if rules is None:
        return record["v_quality"]
    given = [(queries[group], text) for group, text in answers if group in queries]
    return mean_known([rules.quality(query, text) for query, text in given])


def _new(texts: set[str], seen: set[str]) -> float | None:
    return len(texts - seen) / len(texts) if texts else None


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of what is known and finite, None where nothing is."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known else None
