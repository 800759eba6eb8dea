"""What a run's judge said in its games, beside what the verifier and exact rules say of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from evaluation.experiment import Floats
from evaluation.over_time import mean_known
from evaluation.run_files import read_games, read_history

COLUMNS = ["role", "group_id", "text", "admitted", "reward_parts", "quality"]


def beside_the_verifier(
    run_dirs: Sequence[Path], part: str, is_task: Callable[[str], bool]
) -> dict[str, float | None] | None:
    """R_Q of the answers beside their R, over all games of some runs; None where none was judged.

    Returns:
        variance_r, variance_r_q: mean variance within a group, which is what the Solver's
        advantages are made of, of the part `part` of R and of R_Q. correlation: of the two within
        groups, over all of them. v_q_of_tasks, v_q_of_others: mean R_Q of the answers to queries
        that `is_task` reads, and to others.
    """
    within: list[Floats] = []
    means: dict[bool, list[float]] = {True: [], False: []}
    for query, pairs in (group for run_dir in run_dirs for group in _judged(run_dir, part)):
        within.append(pairs - pairs.mean(axis=0))
        means[is_task(query)].append(float(pairs[:, 1].mean()))
    if not within:
        return None
    r, r_q = (np.mean([(one[:, i] ** 2).mean() for one in within]) for i in (0, 1))
    both = np.mean([(one[:, 0] * one[:, 1]).mean() for one in within])
    return {
        "variance_r": float(r),
        "variance_r_q": float(r_q),
        "correlation": float(both / math.sqrt(r * r_q)) if r * r_q else None,
        "v_q_of_tasks": mean_known(means[True]),
        "v_q_of_others": mean_known(means[False]),
    }


def _judged(run_dir: Path, part: str) -> list[tuple[str, Floats]]:
    """(query, [answer, (R, R_Q)]) of each group of which two answers have a verdict."""
    found = []
    for record in read_history(run_dir):
        queries: dict[str, str] = {}
        pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in read_games(run_dir, [record["iteration"]], COLUMNS):
            if row["role"] == "challenger":
                queries[row["group_id"]] = row["text"]
            elif row["admitted"] and row["quality"] is not None:
                pairs[row["group_id"]].append((row["reward_parts"][part], row["quality"]))
        found += [(queries[name], np.array(of)) for name, of in pairs.items() if len(of) > 1]
    return found
