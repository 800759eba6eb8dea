"""What must hold of every ledger; a violation is a sentence that names the iteration."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cluster.ledger import CHALLENGER, SOLVER, Ledger
from learner.advantages import STD_EPSILON

COLUMNS = [
    "iteration",
    "policy_version_min",
    "policy_version_max",
    "group_id",
    "role",
    "task",
    "token_ids",
    "logprobs",
    "finish_reason",
    "reward",
    "advantage",
    "admitted",
    "reject_reason",
]

Row = dict[str, Any]


def check_ledger(
    run_dir: Path,
    *,
    answers: int,
    staleness: int,
    advantage_std: bool = False,
    per_task: bool = False,
) -> list[str]:
    """Every violation of the ledger's invariants, none where it is sound.

    `answers` is G, `staleness` k, `advantage_std` as in the configuration, `per_task` whether the
    Challenger's baseline is. Iterations follow each
    other from 0, a query stands once in the whole run, an admitted one has G answers and a
    rejected one none, advantages are those of the rewards, no text is newer than the weights that
    it trained or more than k versions older: both bounds rise by one with each iteration, so that
    versions are monotone as far as k lets them be.
    """
    rows: dict[int, list[Row]] = defaultdict(list)
    for row in Ledger(run_dir).read(COLUMNS).to_pylist():
        rows[row["iteration"]].append(row)
    return [
        *_sequence(rows),
        *_each_once(rows),
        *(
            f"iteration {iteration}: {said}"
            for iteration in sorted(rows)
            for said in _iteration(iteration, rows[iteration], answers, staleness, advantage_std)
        ),
        *(
            f"iteration {iteration}: advantages of the queries are not those of their rewards"
            for iteration in sorted(rows)
            if any(_wrong_advantages(own, False) for own in _baselines(rows[iteration], per_task))
        ),
    ]


def counted_groups(run_dir: Path, *, queries: int) -> tuple[int, int]:
    """Groups that are missing of the `queries` (N) of each iteration up to the last, and how often
    any stands there again, in its own iteration or in another."""
    rows = Ledger(run_dir).read(["iteration", "group_id", "role", "reward", "admitted"]).to_pylist()
    played = Counter(row["group_id"] for row in _played(rows))
    of_each = Counter(
        iteration for iteration, _ in {(row["iteration"], row["group_id"]) for row in _played(rows)}
    )
    iterations = range(max(of_each, default=-1) + 1)
    lost = sum(max(0, queries - of_each[iteration]) for iteration in iterations)
    return lost, sum(count - 1 for count in played.values())


def _sequence(rows: dict[int, list[Row]]) -> Iterator[str]:
    if sorted(rows) != list(range(len(rows))):
        yield f"iterations are not 0 to {len(rows) - 1}: {sorted(rows)}"
    counts = Counter(len(_played(of_one)) for of_one in rows.values())
    if len(counts) > 1:
        yield f"iterations differ in how many queries they trained: {dict(counts)}"


def _each_once(rows: dict[int, list[Row]]) -> Iterator[str]:
    ids = Counter(row["group_id"] for of_one in rows.values() for row in _queries(of_one))
    for group_id, count in ids.items():
        if count > 1:
            yield f"query {group_id} stands {count} times"


def _iteration(
    iteration: int, rows: list[Row], answers: int, staleness: int, advantage_std: bool
) -> Iterator[str]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["role"] == SOLVER:
            groups[row["group_id"]].append(row)
    yield from _sizes(rows, groups, answers)
    for row in rows:
        yield from _row(iteration, row, staleness)
    for group_id, group in groups.items():
        if _wrong_advantages(group, advantage_std):
            yield f"advantages of the answers of {group_id} are not those of their rewards"


def _baselines(rows: list[Row], per_task: bool) -> list[list[Row]]:
    """The trained queries of an iteration, by what their rewards are centred on."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in _queries(rows):
        if row["advantage"] is not None:
            groups[row["task"] if per_task else ""].append(row)
    return list(groups.values())


def _sizes(rows: list[Row], groups: dict[str, list[Row]], answers: int) -> Iterator[str]:
    admitted = {row["group_id"] for row in _queries(rows) if row["admitted"]}
    for group_id in admitted | groups.keys():
        expected = answers if group_id in admitted else 0
        if len(groups.get(group_id, [])) != expected:
            yield f"query {group_id} has {len(groups.get(group_id, []))} answers, not {expected}"


def _row(iteration: int, row: Row, staleness: int) -> Iterator[str]:
    name = f"{row['role']} row of {row['group_id']}"
    oldest, newest = row["policy_version_min"], row["policy_version_max"]
    if row["finish_reason"] != "dataset":
        in_order = iteration - staleness <= oldest <= newest <= iteration
        if not in_order:
            yield f"{name} was written by versions {oldest} to {newest}"
    if row["admitted"] != (row["reject_reason"] is None):
        yield f"{name} is admitted {row['admitted']} with reason {row['reject_reason']}"
    if row["logprobs"] is not None and len(row["logprobs"]) != len(row["token_ids"]):
        yield f"{name} has {len(row['logprobs'])} logprobs of {len(row['token_ids'])} tokens"
    if (row["advantage"] is not None) and row["reward"] is None:
        yield f"{name} has an advantage and no reward"


def _wrong_advantages(rows: list[Row], divide_by_std: bool) -> bool:
    """Whether the rows' advantages differ from their rewards, centred over all of them."""
    stored = [row["advantage"] for row in rows]
    if not rows:
        return False
    if any(value is None for value in (*stored, *(row["reward"] for row in rows))):
        return True
    rewards = np.array([row["reward"] for row in rows])
    expected = rewards - rewards.mean()
    if divide_by_std:
        expected /= rewards.std(ddof=1) + STD_EPSILON
    return not np.allclose(stored, expected, rtol=1e-5, atol=1e-5 * (1 + np.abs(rewards).max()))


def _queries(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["role"] == CHALLENGER]


def _played(rows: list[Row]) -> list[Row]:
    """Queries that took one of the iteration's N places: admitted, or trained as the worst."""
    return [row for row in _queries(rows) if row["admitted"] or row["reward"] is not None]
