"""The ledger of a run: one Parquet file per iteration, a row per query and per answer.

Columns are those of `SCHEMA`. A query's `reward_parts` and `quality` are the means over its
answers (V and V_Q, raw). What does not apply is null; a query out of a data set has no tokens
of its own and policy versions −1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.records import Completion, Group, Query, Rejected
from cluster.record import StepOutcome, quality_of
from configs.errors import UserError

CHALLENGER, SOLVER = "challenger", "solver"
NO_VERSION = -1
"""Policy version of a text that no policy wrote."""

SCHEMA = pa.schema(
    [
        ("iteration", pa.int64()),
        ("policy_version_min", pa.int64()),
        ("policy_version_max", pa.int64()),
        ("group_id", pa.string()),
        ("role", pa.string()),
        ("task", pa.string()),
        ("template", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("reward", pa.float64()),
        ("reward_parts", pa.map_(pa.string(), pa.float64())),
        ("quality", pa.float64()),
        ("verdict_text", pa.string()),
        ("advantage", pa.float64()),
        ("admitted", pa.bool_()),
        ("reject_reason", pa.string()),
        ("seed", pa.int64()),
    ]
)

Fields = dict[str, Any]


class Ledger:
    """Writes and reads `RUN/games/`."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "games"

    def write(
        self,
        iteration: int,
        groups: Sequence[Group],
        rejected: Sequence[Rejected],
        outcome: StepOutcome,
    ) -> None:
        """Write an iteration's file, whole or not at all. Raises UserError where it cannot."""
        rows = [*_trained_rows(iteration, groups, outcome)]
        rows += [_rejected_row(iteration, one) for one in rejected]
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        path = self.folder / f"{iteration:06d}.parquet"
        unfinished = path.with_suffix(".unfinished")
        try:
            # Not its parents: a run directory that is gone is not made anew without its rest.
            self.folder.mkdir(exist_ok=True)
            with unfinished.open("wb") as file:
                pq.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as error:
            raise UserError(f"the ledger {path} cannot be written: {error}") from error

    def undo_from(self, iteration: int) -> list[int]:
        """Move the files of `iteration` and later ones to `games/undone/`; return which.

        They belong to training that a crash made void: their iterations are played again.
        """
        undone = self.folder / "undone"
        void = [path for path in self.files() if int(path.stem) >= iteration]
        for path in void:
            undone.mkdir(exist_ok=True)
            earlier = len(list(undone.glob(f"{path.stem}*.parquet")))
            path.replace(undone / f"{path.stem}-{earlier}.parquet")
        return [int(path.stem) for path in void]

    def files(self) -> list[Path]:
        """The iterations' files in order."""
        return sorted(self.folder.glob("[0-9]*.parquet"))

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All rows, in the order of the iterations; only some columns where named."""
        names = columns or SCHEMA.names
        empty = SCHEMA.empty_table().select(names)
        return pa.concat_tables([empty, *(pq.read_table(p, columns=names) for p in self.files())])


def _trained_rows(
    iteration: int, groups: Sequence[Group], outcome: StepOutcome
) -> Iterator[Fields]:
    """A row per query and per answer of the batch, with what the step made of them."""
    for i, group in enumerate(groups):
        yield {
            **_query_fields(iteration, group.query),
            "reward": _number(outcome.rewards_challenger[i]),
            "advantage": _number(outcome.advantages_challenger[i]),
            "reward_parts": [(n, float(v.mean())) for n, v in group.scores.parts.items()],
            "quality": _number(quality_of(group)),
            "admitted": group.reject_reason is None,
            "reject_reason": group.reject_reason,
        }
        for j, answer in enumerate(group.answers):
            verdict = group.scores.verdicts[j] if group.scores.verdicts else None
            yield {
                **_place(iteration, group.query),
                **_completion_fields(answer),
                "role": SOLVER,
                "text": answer.text,
                "reward": _number(outcome.rewards_solver[i][j]),
                "advantage": _number(outcome.advantages_solver[i][j]),
                "reward_parts": [(n, float(v[j])) for n, v in group.scores.parts.items()],
                "quality": None if verdict is None else verdict.score,
                "verdict_text": None if verdict is None else verdict.text,
                "admitted": True,
            }


def _rejected_row(iteration: int, rejected: Rejected) -> Fields:
    """The row of a query that the gate turned away and that was not trained."""
    fields = _query_fields(iteration, rejected.query)
    return fields | {"admitted": False, "reject_reason": rejected.reason, "reward_parts": []}


def _place(iteration: int, query: Query) -> Fields:
    return {
        "iteration": iteration,
        "group_id": query.group_id,
        "task": query.task,
        "template": query.template,
    }


def _query_fields(iteration: int, query: Query) -> Fields:
    fields = _place(iteration, query) | {"role": CHALLENGER, "text": query.text}
    if query.completion is not None:
        return fields | _completion_fields(query.completion)
    return fields | {
        "policy_version_min": NO_VERSION,
        "policy_version_max": NO_VERSION,
        "prompt_token_ids": [],
        "token_ids": [],
        "finish_reason": "dataset",
        "seed": 0,
    }


def _completion_fields(completion: Completion) -> Fields:
    return {
        "policy_version_min": completion.version_min,
        "policy_version_max": completion.version_max,
        "prompt_token_ids": completion.prompt_token_ids,
        "token_ids": completion.token_ids,
        "logprobs": completion.logprobs,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
    }


def _number(value: float) -> float | None:
    """A cell's number; null for NaN, which stands for "does not apply"."""
    return None if np.isnan(value) else float(value)
