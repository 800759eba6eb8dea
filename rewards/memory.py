"""A bounded memory of past queries, because the modes of a Challenger come round again.

Looking at one batch at a time lets a policy cycle through a few kinds of queries; R-Diverse
(arXiv 2602.13103) compares with past iterations for that reason. It embeds the queries; this
compares their words, which costs milliseconds and needs no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from rewards.ngrams import Hashes, Words, ngrams, occurrences, words_of

Floats = npt.NDArray[np.float64]
Bag = Hashes
"""Hashes of a query's words and pairs of words, each occurrence its own; the low bits are 0."""

ROW_BITS = 16
_ROW = np.uint64((1 << ROW_BITS) - 1)
CAPACITY_LIMIT = 1 << ROW_BITS
"""Most queries that a memory can hold."""


@dataclass(frozen=True, eq=False)
class QueryMemory:
    """The last `capacity` different queries of past iterations.

    Immutable: `updated` returns another memory, and a training step that is not applied leaves
    the old one in force. So the queries of an iteration are compared with `duplicates` and
    `novelty` of the memory from before it, which does not hold them. Two queries are the same
    where their words are, and one that comes again is as young as its last time.
    """

    capacity: int
    _bags: Mapping[str, Bag] = field(default_factory=dict)
    """By the query's words, the oldest query first."""

    def __post_init__(self) -> None:
        """Raise ValueError where the capacity is out of bounds."""
        if not 1 <= self.capacity <= CAPACITY_LIMIT:
            raise ValueError(f"a memory holds 1 to {CAPACITY_LIMIT} queries, not {self.capacity}")

    def __len__(self) -> int:
        """How many queries are remembered."""
        return len(self._bags)

    def updated(self, texts: Sequence[str]) -> QueryMemory:
        """Return the memory with an iteration's queries taken in and the oldest forgotten.

        The queries of one iteration are all of the same age.
        """
        # Sorted, so that which of them a full memory drops first does not hang on their order.
        new = sorted({key for text in texts if (key := _key(text))})
        bags = dict(self._bags)
        for key, bag in zip(new, _bags_of(new), strict=True):
            bags.pop(key, None)
            bags[key] = bag
        forgotten = max(0, len(bags) - self.capacity)
        return QueryMemory(self.capacity, dict(islice(bags.items(), forgotten, None)))

    def duplicates(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return which texts have the words of a remembered query [N]."""
        return np.array([_key(text) in self._bags for text in texts], dtype=bool)

    def novelty(self, texts: Sequence[str]) -> Floats:
        """Return 1 − the highest similarity of each text to a remembered query [N], 0 … 1.

        The similarity is the Jaccard index of the multisets of words and pairs of words: 1 where
        both hold the same ones equally often, 0 where they share no word. A text without words
        has no novelty.
        """
        keys = [_key(text) for text in texts]
        novelty_N = np.ones(len(keys))
        if self._bags and keys:
            remembered = list(self._bags.values())
            novelty_N -= _jaccard(_bags_of(keys), remembered).max(axis=1)
        return np.where([key != "" for key in keys], novelty_N, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the words of each query, the oldest first."""
        return {"queries": list(self._bags)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], capacity: int) -> QueryMemory:
        """Rebuild from `state_dict`; a smaller capacity forgets the oldest."""
        kept: list[str] = state["queries"][-capacity:]
        return cls(capacity, dict(zip(kept, _bags_of(kept), strict=True)))


def _key(text: str) -> str:
    """Return a query's words with single spaces between them: no word holds that space."""
    return " ".join(words_of(text))


def _bags_of(keys: Sequence[str]) -> list[Bag]:
    """Return the bag of each key.

    Without their low bits the hashes have 48: with 4,096 queries of 40 words remembered, 32 new
    ones meet a false match in one of 300,000 iterations, and one similarity shifts by a little.
    """
    words: list[Words] = [tuple(key.split(" ")) if key else () for key in keys]
    single, pairs = ngrams(words, 1), ngrams(words, 2)
    rows, hashes = occurrences(
        np.concatenate([single[0], pairs[0]]), np.concatenate([single[1], pairs[1]])
    )
    edges = np.searchsorted(rows, np.arange(len(keys) + 1))
    return np.split(hashes & ~_ROW, edges)[1:-1]


def _jaccard(asked: Sequence[Bag], remembered: Sequence[Bag]) -> Floats:
    """Return |A ∩ B| / |A ∪ B| [N, M] of N bags and M > 0."""
    sizes_N = np.array([len(bag) for bag in asked])
    sizes_M = np.array([len(bag) for bag in remembered])
    rows_N = np.repeat(np.arange(len(asked)), sizes_N)
    columns, column_of = np.unique(np.concatenate(asked), return_inverse=True)
    asks = np.zeros((len(columns), len(asked)))
    asks[column_of, rows_N] = 1.0
    shared = (_holders(columns, remembered, sizes_M).T @ asks).T
    return shared / np.maximum(sizes_N[:, None] + sizes_M - shared, 1)


def _holders(hashes: Bag, remembered: Sequence[Bag], sizes_M: npt.NDArray[np.int_]) -> csr_array:
    """Return which of M bags hold which of the sorted hashes, as ones [hashes, M].

    Each hash carries its bag's row in its low bits, so one sort of numbers is the whole index. The
    product with it costs (hashes remembered) × N at most, however much the queries repeat.
    """
    rows_M = np.arange(len(remembered), dtype=np.uint64)
    index = np.sort(np.concatenate(remembered) | np.repeat(rows_M, sizes_M))
    first, last = np.searchsorted(index, hashes), np.searchsorted(index, hashes | _ROW, "right")
    held = last - first
    starts = np.concatenate([[0], np.cumsum(held)])
    places = np.arange(starts[-1]) + np.repeat(first - starts[:-1], held)
    rows = (index[places] & _ROW).astype(np.int64)
    return csr_array((np.ones(len(rows)), rows, starts), shape=(len(hashes), len(remembered)))
