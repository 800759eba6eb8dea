"""Texts as words and n-grams: what the diversity of queries is counted in.

The words are those of UAX 29 (Unicode text segmentation), without case: right for any script with
spaces, one character at a time in those without (Chinese, Thai), and every symbol and punctuation
mark is a word of its own, since `2 + 3` and `2 − 3` are different queries.

An n-gram is a 64-bit hash, the same in every process (Python's own hash of a text is not): all
n-grams of all texts are two flat arrays. The chance that two of a million n-grams have the same
hash is below one in ten million.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import regex

Words = tuple[str, ...]
Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

# `w`: word boundaries by UAX 29. `V1`: a boundary, which is empty, can split.
_BOUNDARY = regex.compile(r"(?wV1)\b")
# Any odd numbers with mixed bits; different ones, or (a, b) could meet the next occurrence of b.
_NEXT_WORD = np.uint64(0x9E3779B97F4A7C15)
_NEXT_OCCURRENCE = np.uint64(0xC2B2AE3D27D4EB4F)


@lru_cache(maxsize=1024)  # an iteration asks for its texts several times
def words_of(text: str) -> Words:
    """Return the words of a text, without case and in Unicode's composed form (NFC)."""
    pieces = _BOUNDARY.split(unicodedata.normalize("NFC", text.casefold()))
    return tuple(word for piece in pieces if (word := piece.strip()))


def ngrams(texts: Sequence[Words], order: int) -> tuple[Ints, Hashes]:
    """Return all n-grams of one order in N texts: the row 0 … N − 1 of each [T], its hash [T]."""
    lengths = np.array([len(words) for words in texts], dtype=np.int64)
    rows = np.repeat(np.arange(len(texts)), lengths)
    hashes = np.array([_hash(word) for words in texts for word in words], dtype=np.uint64)
    joined = hashes
    for n in range(1, order):
        joined = joined[:-1] * _NEXT_WORD + hashes[n:]
    within = rows[: len(joined)] == rows[order - 1 :]  # not across two texts
    return rows[: len(joined)][within], joined[within]


def occurrences(rows: Ints, hashes: Hashes) -> tuple[Ints, Hashes]:
    """Make each row's n-grams a set: the second `the` of a text is another element than its first.

    What two such sets share is the sum over the n-grams of the smaller count, which both BLEU and
    the Jaccard index of multisets need. Returned in order of the rows, [T] and [T].
    """
    order = np.lexsort((hashes, rows))
    rows, hashes = rows[order], hashes[order]
    places = np.arange(len(rows))
    repeats = np.zeros(len(rows), dtype=bool)
    repeats[1:] = (rows[1:] == rows[:-1]) & (hashes[1:] == hashes[:-1])
    before = places - np.maximum.accumulate(np.where(repeats, 0, places))
    return rows, hashes + before.astype(np.uint64) * _NEXT_OCCURRENCE


@lru_cache(maxsize=1 << 16)
def _hash(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
