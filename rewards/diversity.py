"""How alike the queries of one iteration are: statistics, and a penalty on what repeats.

Pure; N texts in, nothing depends on their order but the order of what comes out. BLEU is the
sentence score of Papineni et al. (2002) over 1- to 4-grams, fewer in a shorter text; a precision
without a match counts 0.1 matches (Chen & Cherry 2014, method 1), as in R-Zero. It is the score
of sacrebleu's `floor` with its effective order, counted for all pairs at once: one call for each
pair takes some fifty times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform

from rewards.ngrams import Ints, Words, ngrams, occurrences, words_of

Floats = npt.NDArray[np.float64]

ORDERS = (1, 2, 3, 4)
"""Orders of the n-grams of BLEU."""
NO_MATCH = 0.1
"""Matches that a precision without any counts as."""


@dataclass(frozen=True)
class QueryStatistics:
    """How different the queries of an iteration are; NaN where there is nothing to count."""

    distinct_1: float
    """Different words over all words (Li et al. 2016, arXiv 1510.03055)."""
    distinct_2: float
    """Different pairs of words over all pairs."""
    distinct_3: float
    """Different triples of words over all triples."""
    self_bleu: float
    """Mean BLEU of each query with the others as its references (Zhu et al. 2018, Texygen)."""


def query_statistics(texts: Sequence[str]) -> QueryStatistics:
    """Return the statistics of N queries."""
    return QueryStatistics(
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        distinct_3=distinct(texts, 3),
        self_bleu=self_bleu(texts),
    )


def distinct(texts: Sequence[str], order: int) -> float:
    """Return the different n-grams of all texts over all their n-grams, NaN where none has one."""
    _, hashes = ngrams([words_of(text) for text in texts], order)
    return len(np.unique(hashes)) / len(hashes) if len(hashes) else math.nan


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU of each text with all others as references, NaN for fewer than two."""
    if len(texts) < 2:
        return math.nan
    words = [words_of(text) for text in texts]
    matches = np.stack([_found_elsewhere(words, order) for order in ORDERS])
    lengths_N = np.array([len(one) for one in words])
    scores_N = _bleu(matches, lengths_N, _closest_other(lengths_N))
    return math.fsum(scores_N) / len(texts)  # fsum: the same to the last bit in any order


def pairwise_bleu(texts: Sequence[str]) -> Floats:
    """Return BLEU [N, N] of each text (row) with each (column) as its only reference."""
    words = [words_of(text) for text in texts]
    matches = np.stack([_shared(words, order) for order in ORDERS])
    lengths_N = np.array([len(one) for one in words])
    return _bleu(matches, lengths_N[:, None], lengths_N[None, :])


def repetition_penalty(texts: Sequence[str], threshold: float = 0.5) -> Floats:
    """Return each text's share of the batch in its cluster [N], 1/N … 1.

    Clusters of average linkage, joined at a distance 1 − BLEU of at most `threshold` (R-Zero,
    arXiv 2508.05004). R-Zero takes BLEU from one side of each pair; this is the mean of both
    sides, so that the order of the batch plays no part.
    """
    if len(texts) < 2:
        return np.ones(len(texts))
    # In a fixed order, since it decides which of two pairs at the same distance is joined first.
    order_N = sorted(range(len(texts)), key=lambda i: words_of(texts[i]))
    scores = pairwise_bleu([texts[i] for i in order_N])
    distances = squareform(1.0 - (scores + scores.T) / 2.0, checks=False)
    clusters_N = fcluster(linkage(distances, "average"), threshold, criterion="distance")
    shares_N = np.empty(len(texts))
    shares_N[order_N] = np.bincount(clusters_N)[clusters_N] / len(texts)
    return shares_N


def _bleu(matches: Ints, lengths: Ints, reference_lengths: Ints) -> Floats:
    """Return BLEU [...] out of the matches [orders, ...] and the lengths in words [...].

    A text without words scores 0, and so does one without a match.
    """
    logs = np.zeros(matches.shape[1:])
    for order, found in zip(ORDERS, matches, strict=True):
        total = lengths - order + 1
        precision = np.where(found > 0, found, NO_MATCH) / np.maximum(total, 1)
        logs += np.where(total > 0, np.log(precision), 0.0)
    orders = np.clip(lengths, 1, len(ORDERS))
    brevity = np.minimum(0.0, 1.0 - reference_lengths / np.maximum(lengths, 1))
    return np.where(matches[0] > 0, np.exp(brevity + logs / orders), 0.0)


def _found_elsewhere(words: Sequence[Words], order: int) -> Ints:
    """Return how many n-grams of each text occur in another one [N], counts clipped as in BLEU."""
    rows, hashes = occurrences(*ngrams(words, order))
    _, ids, texts_with = np.unique(hashes, return_inverse=True, return_counts=True)
    return np.bincount(rows[texts_with[ids] > 1], minlength=len(words))


def _closest_other(lengths_N: Ints) -> Ints:
    """Return the length among the other texts that is closest to each one's, the shorter of two."""
    # By the different lengths, since all pairs of thousands of texts are gigabytes.
    lengths, ids_N, texts_with = np.unique(lengths_N, return_inverse=True, return_counts=True)
    gaps = np.diff(lengths).astype(np.float64)
    below, above = np.append(np.inf, gaps), np.append(gaps, np.inf)
    nearest = np.where(below <= above, np.roll(lengths, 1), np.roll(lengths, -1))
    return np.where(texts_with > 1, lengths, nearest)[ids_N]


def _shared(words: Sequence[Words], order: int) -> Ints:
    """Return how many n-grams each two texts share [N, N], counts clipped as in BLEU."""
    rows, hashes = occurrences(*ngrams(words, order))
    _, ids = np.unique(hashes, return_inverse=True)
    held = csr_array((np.ones_like(rows), (rows, ids)), shape=(len(words), max(len(ids), 1)))
    return (held @ held.T).toarray()
