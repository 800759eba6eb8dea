"""Statistics and the repetition penalty: hand-worked numbers, and BLEU against sacrebleu's."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from rewards import diversity
from rewards.diversity import (
    distinct,
    pairwise_bleu,
    query_statistics,
    repetition_penalty,
    self_bleu,
)

SORT = "sort the words red green blue and gold"
NEAR = "sort the words red green blue and black"  # one of eight words
FAR = "how many legs do three cats have"

text = st.lists(st.sampled_from("abcde"), max_size=9).map(" ".join)
batch = st.lists(text, min_size=2, max_size=7)


def reference(hypothesis, references):
    bleu = BLEU(tokenize="none", smooth_method="floor", smooth_value=0.1, effective_order=True)
    return bleu.sentence_score(hypothesis, references).score / 100


@given(batch)
def test_pairwise_bleu_is_sacrebleus(texts):
    expected = [[reference(hypothesis, [one]) for one in texts] for hypothesis in texts]
    np.testing.assert_allclose(pairwise_bleu(texts), expected, rtol=0, atol=1e-9)


@given(batch)
def test_self_bleu_is_sacrebleus_with_all_others_as_references(texts):
    scores = [reference(one, texts[:i] + texts[i + 1 :]) for i, one in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(np.mean(scores), abs=1e-9)


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, no four (0.1 of 3); as long as its reference.
    score = pairwise_bleu(["the cat sat on the mat", "the cat is on the mat"])[0, 1]
    assert score == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 0.1 / 3) ** 0.25, abs=1e-12)
    # Two of two words, one of one pair, against eight: the brevity penalty alone.
    assert pairwise_bleu(["red green", SORT])[0, 1] == pytest.approx(math.exp(1 - 8 / 2))


@pytest.mark.parametrize("one", ["a", "a b", "a b c", SORT])
def test_text_of_any_length_is_wholly_like_itself(one):
    assert pairwise_bleu([one, FAR])[0, 0] == 1.0
    assert self_bleu([one, one]) == 1.0


def test_query_is_not_its_own_reference():
    assert self_bleu([SORT, FAR]) == 0.0
    assert self_bleu([SORT, FAR, "write a poem"]) == 0.0


def test_distinct_by_hand():
    texts = ["a b a b", "A b c", "d"]
    assert distinct(texts, 1) == 4 / 8
    assert distinct(texts, 2) == 3 / 5  # ab ba ab, ab bc: none goes from one text into the next
    assert distinct(texts, 3) == 3 / 3
    assert math.isnan(distinct(texts, 5))


@pytest.mark.parametrize("texts", [[], ["one query of five words"]])
def test_nothing_to_compare_is_nan(texts):
    assert math.isnan(self_bleu(texts))
    assert math.isnan(query_statistics(texts).distinct_3) == (not texts)


def test_statistics_are_these_functions():
    found = query_statistics([SORT, NEAR, FAR])
    assert (found.distinct_1, found.distinct_2) == (16 / 23, 14 / 20)
    assert found.distinct_3 == 12 / 17
    assert found.self_bleu == self_bleu([SORT, NEAR, FAR])


def test_penalty_is_the_share_of_the_batch_in_the_querys_cluster():
    texts = [FAR, SORT, "write a poem", NEAR, SORT]
    assert repetition_penalty(texts).tolist() == [1 / 5, 3 / 5, 1 / 5, 3 / 5, 3 / 5]


def test_unlike_queries_are_clusters_of_their_own():
    texts = [f"{c} {c}1 {c}2 {c}3" for c in "abcdefgh"]
    assert repetition_penalty(texts).tolist() == [1 / 8] * 8
    assert repetition_penalty([SORT] * 8).tolist() == [1.0] * 8


def test_short_queries_that_are_the_same_are_one_cluster():
    assert repetition_penalty(["2 + 3", "stop", "2+3"]).tolist() == [2 / 3, 1 / 3, 2 / 3]


@pytest.mark.parametrize(("texts", "penalties"), [([], []), ([SORT], [1.0])])
def test_penalty_of_hardly_any_queries(texts, penalties):
    assert repetition_penalty(texts).tolist() == penalties


def test_threshold_is_a_distance_and_belongs_to_the_cluster():
    distance = 1 - float(pairwise_bleu([SORT, NEAR])[0, 1])
    assert 0.1 < distance < 0.5
    assert repetition_penalty([SORT, NEAR], distance).tolist() == [1.0, 1.0]
    assert repetition_penalty([SORT, NEAR], distance - 1e-6).tolist() == [0.5, 0.5]
    assert repetition_penalty([SORT, FAR], 1.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("a_c", "penalties"),
    [
        (0.6, [1.0, 1.0, 1.0]),  # c to {a, b}: 0.475 on average, 0.6 at most
        (0.7, [2 / 3, 2 / 3, 1 / 3]),  # c to {a, b}: 0.525 on average, 0.35 at least
    ],
)
def test_clusters_are_of_average_linkage_and_of_both_sides_mean(monkeypatch, a_c, penalties):
    distance = {(0, 1): 0.3, (1, 2): 0.35, (0, 2): a_c}
    scores = np.eye(3)
    for (i, j), value in distance.items():
        scores[i, j], scores[j, i] = 1 - value + 0.05, 1 - value - 0.05
    monkeypatch.setattr(diversity, "pairwise_bleu", lambda texts: scores)
    assert repetition_penalty(["a", "b", "c"]) == pytest.approx(penalties)


def test_tie_is_broken_the_same_way_in_any_order():
    # The middle one is as close to the first as to the last, which are too far apart for all three.
    texts = ["a b c d e x y z", "a b c d e f g h", "p q r d e f g h"]
    penalties = dict(zip(texts, repetition_penalty(texts), strict=True))
    assert sorted(penalties.values()) == [1 / 3, 2 / 3, 2 / 3]
    for turned in permutations(texts):
        assert dict(zip(turned, repetition_penalty(turned), strict=True)) == penalties


@given(st.lists(text, max_size=8), st.randoms())
def test_order_of_the_batch_plays_no_part(texts, random):
    places = list(range(len(texts)))
    random.shuffle(places)
    turned = [texts[i] for i in places]
    assert repetition_penalty(turned).tolist() == repetition_penalty(texts)[places].tolist()
    one, other = query_statistics(texts), query_statistics(turned)
    np.testing.assert_array_equal(list(vars(one).values()), list(vars(other).values()))
