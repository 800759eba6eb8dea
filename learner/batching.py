"""Completions into micro-batches: a token budget, the same number on every rank, nothing cut.

Rows are sorted by length, so that little of a micro-batch is padding, and dealt out in turn, so
that ranks work on equal lengths at the same time. Ranks with different numbers of micro-batches
would hang ZeRO-3, so the short ones get padding micro-batches whose coefficient is 0.

Axes: B rows of a micro-batch, L its longest prompt + completion, T = L − 1 predicted positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from actors.records import Completion

PADDING_ROW = -1
"""Row id of a row that fills up a rank and counts nowhere."""


@dataclass(frozen=True, eq=False)
class Row:
    """A completion to be trained, or scored (then the advantage is not used); see `merged`."""

    row_id: int
    completion: Completion
    role: int
    temperature: float
    coefficient: float = 1.0
    advantage: float = 0.0
    count: int = 1
    """Completions that it stands for."""

    @cached_property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.completion.prompt_token_ids) + len(self.completion.token_ids)


def merged(rows: Iterable[tuple[Hashable, Row]]) -> list[Row]:
    """Return one row for all rows of the same key and completion, under the first one's id.

    Rows of one key have the same prompt, role and temperature. The loss is linear in coefficients
    c and in c · A: with their sum for a coefficient and the mean of A weighted by c, the row has
    the value and the gradient of all of them.
    """
    alike: dict[Hashable, list[Row]] = defaultdict(list)
    for key, row in rows:
        engine = row.completion.logprobs
        told = None if engine is None else engine.tobytes()
        alike[key, row.completion.token_ids.tobytes(), told].append(row)
    return [_as_one(same) for same in alike.values()]


def _as_one(rows: Sequence[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    coefficient = sum(row.coefficient for row in rows)
    gain = sum(row.coefficient * row.advantage for row in rows)
    return replace(rows[0], coefficient=coefficient, advantage=gain / coefficient, count=len(rows))


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One forward pass of one rank, padded on the right."""

    row_ids: npt.NDArray[np.int64]  # [B]
    tokens_BL: npt.NDArray[np.int64]
    mask_BT: npt.NDArray[np.bool_]  # position t predicts the completion token at t + 1
    engine_BT: npt.NDArray[np.float32]  # the engine's log-probabilities, 0 where it gave none
    has_engine_B: npt.NDArray[np.bool_]
    advantages_B: npt.NDArray[np.float32]
    coefficients_B: npt.NDArray[np.float32]
    counts_B: npt.NDArray[np.int64]  # completions that the row stands for
    roles_B: npt.NDArray[np.int64]
    temperatures_B: npt.NDArray[np.float32]
    lengths_B: npt.NDArray[np.int64]


def split(rows: Sequence[Row], ranks: int, budget: int) -> list[list[MicroBatch]]:
    """Return the micro-batches of each rank: as many for one as for another, deterministic.

    A micro-batch holds at most `budget` padded tokens (rows × longest); a row longer than the
    budget gets a micro-batch of its own and is never cut.
    """
    if not rows:
        raise ValueError("a batch without completions cannot be split")
    # The longest first: what does not fit into memory fails at once.
    ordered = sorted(rows, key=lambda row: (-row.length, row.row_id))
    chunks = _even(_chunks(ordered, budget), ranks)
    padding = replace(ordered[-1], row_id=PADDING_ROW, coefficient=0.0, advantage=0.0)
    chunks += [[padding]] * (-len(chunks) % ranks)
    return [[_collate(chunk) for chunk in chunks[rank::ranks]] for rank in range(ranks)]


def padding_share(per_rank: Sequence[Sequence[MicroBatch]]) -> float:
    """Return the share of computed positions that hold no token of a real row."""
    batches = [batch for batches in per_rank for batch in batches]
    computed = sum(batch.tokens_BL.size for batch in batches)
    real = sum(int(b.lengths_B[b.row_ids != PADDING_ROW].sum()) for b in batches)
    return 1.0 - real / computed


def _chunks(ordered: list[Row], budget: int) -> list[list[Row]]:
    chunks: list[list[Row]] = []
    for row in ordered:
        # The first row of a chunk is its longest.
        if chunks and (len(chunks[-1]) + 1) * chunks[-1][0].length <= budget:
            chunks[-1].append(row)
        else:
            chunks.append([row])
    return chunks


def _even(chunks: list[list[Row]], ranks: int) -> list[list[Row]]:
    """Halve the largest chunks while a rank would otherwise compute padding only."""
    while len(chunks) % ranks and max(map(len, chunks)) > 1:
        index = max(range(len(chunks)), key=lambda i: len(chunks[i]) * chunks[i][0].length)
        if len(chunks[index]) == 1:
            index = max(range(len(chunks)), key=lambda i: len(chunks[i]))
        middle = len(chunks[index]) // 2
        chunks[index : index + 1] = [chunks[index][:middle], chunks[index][middle:]]
    return chunks


def _collate(rows: list[Row]) -> MicroBatch:
    count, longest = len(rows), max(row.length for row in rows)
    tokens_BL = np.zeros((count, longest), dtype=np.int64)
    mask_BT = np.zeros((count, longest - 1), dtype=bool)
    engine_BT = np.zeros((count, longest - 1), dtype=np.float32)
    for b, row in enumerate(rows):
        prompt = len(row.completion.prompt_token_ids)
        tokens_BL[b, :prompt] = row.completion.prompt_token_ids
        tokens_BL[b, prompt : row.length] = row.completion.token_ids
        mask_BT[b, prompt - 1 : row.length - 1] = True
        if row.completion.logprobs is not None:
            engine_BT[b, prompt - 1 : row.length - 1] = row.completion.logprobs
    return MicroBatch(
        row_ids=np.array([row.row_id for row in rows]),
        tokens_BL=tokens_BL,
        mask_BT=mask_BT,
        engine_BT=engine_BT,
        has_engine_B=np.array([row.completion.logprobs is not None for row in rows]),
        advantages_B=np.array([row.advantage for row in rows], dtype=np.float32),
        coefficients_B=np.array([row.coefficient for row in rows], dtype=np.float32),
        counts_B=np.array([row.count for row in rows]),
        roles_B=np.array([row.role for row in rows]),
        temperatures_B=np.array([row.temperature for row in rows], dtype=np.float32),
        lengths_B=np.array([row.length for row in rows]),
    )
