"""The memory of past queries: what it holds, forgets, compares exactly, and brings back."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.memory import CAPACITY_LIMIT, QueryMemory
from rewards.ngrams import words_of

SORT = "Sort the words: red green blue"
FAR = "How many legs have three cats"

query = st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join)
queries = st.lists(query, max_size=8)


def jaccard(one, other):
    """Of the multisets of words and pairs of words."""
    a, b = (
        Counter([*((w,) for w in words), *pairwise(words)])
        for words in (words_of(one), words_of(other))
    )
    return (a & b).total() / max((a | b).total(), 1)


def test_iteration_is_not_compared_with_itself():
    before = QueryMemory(8)
    after = before.updated([SORT, FAR])
    assert not before.duplicates([SORT, FAR]).any()
    assert before.novelty([SORT, FAR]).tolist() == [1.0, 1.0]
    assert after.duplicates([SORT, FAR]).all()
    assert after.novelty([SORT, FAR]).tolist() == [0.0, 0.0]


def test_repeats_within_an_iteration_are_no_duplicates():
    assert QueryMemory(8).updated([FAR]).duplicates([SORT, SORT, FAR]).tolist() == [
        False,
        False,
        True,
    ]


def test_update_leaves_the_old_memory_in_force():
    first = QueryMemory(2).updated(["one", "two"])
    state = first.state_dict()
    first.updated(["three", "one"])
    assert first.state_dict() == state
    assert first.duplicates(["one", "two", "three"]).tolist() == [True, True, False]


def test_duplicate_is_of_the_same_words():
    memory = QueryMemory(8).updated([SORT, "What is 2 + 3?"])
    same = ["sort  THE words :\nred green blue", "what is 2+3 ?"]
    other = ["sort the words: red blue green", "What is 2 - 3?", "What is 2 + 3", ""]
    assert memory.duplicates([*same, *other]).tolist() == [True, True, *[False] * 4]


def test_no_query_has_no_figures():
    memory = QueryMemory(8).updated([SORT])
    assert memory.novelty([]).shape == memory.duplicates([]).shape == (0,)


def test_novelty_by_hand():
    memory = QueryMemory(8).updated(["a b c", "x y"])
    # {a, b, d, ab, bd} shares a, b and ab with {a, b, c, ab, bc}: 3 of 7.
    assert memory.novelty(["a b d", "c b a", "y", "q", "a b c", "A b C"]) == pytest.approx(
        [1 - 3 / 7, 1 - 3 / 7, 1 - 1 / 3, 1.0, 0.0, 0.0]
    )


def test_word_counts_as_often_as_it_stands():
    memory = QueryMemory(8).updated(["a a b"])
    # {a, a, b, aa, ab} against {a, a, a, b, aa, aa, ab}: 5 of 7.
    assert memory.novelty(["a a a b"]) == pytest.approx([1 - 5 / 7])


def test_text_without_words_has_no_novelty_and_is_not_remembered():
    assert QueryMemory(8).novelty(["", " \n"]).tolist() == [0.0, 0.0]
    assert len(QueryMemory(8).updated(["", " \n"])) == 0


@given(queries, queries)
def test_novelty_is_that_of_the_most_similar_remembered_query(past, new):
    memory = QueryMemory(100).updated(past)
    remembered = [one for one in past if one]
    expected = [
        1 - max((jaccard(one, other) for other in remembered), default=0.0) if one else 0.0
        for one in new
    ]
    np.testing.assert_allclose(memory.novelty(new), expected, atol=1e-12)


def test_oldest_is_forgotten_first():
    memory = QueryMemory(3).updated(["one", "two"]).updated(["three"]).updated(["four"])
    assert len(memory) == 3
    assert memory.duplicates(["one", "two", "three", "four"]).sum() == 3
    memory = memory.updated(["five", "six"])
    old = ["one", "two", "three", "four", "five", "six"]
    assert memory.duplicates(old).tolist() == [False] * 3 + [True] * 3
    assert memory.novelty(old).tolist() == [1.0] * 3 + [0.0] * 3


def test_query_that_comes_again_is_held_once_and_is_young_again():
    memory = QueryMemory(2).updated(["one"]).updated(["two"]).updated(["ONE", "one"])
    assert len(memory) == 2
    memory = memory.updated(["three"])
    assert memory.duplicates(["one", "two", "three"]).tolist() == [True, False, True]


def test_collapse_does_not_wash_out_the_memory():
    memory = QueryMemory(4).updated(["one", "two", "three"])
    for _ in range(20):
        memory = memory.updated([SORT] * 8)
    assert memory.duplicates(["one", "two", "three", SORT]).all()


def test_iteration_larger_than_the_memory():
    memory = QueryMemory(2).updated(["old"]).updated(["one", "two", "three"])
    assert len(memory) == 2
    assert not memory.duplicates(["old"]).any()


@given(queries, queries, queries, st.randoms())
def test_order_of_an_iteration_plays_no_part(past, new, asked, random):
    shuffled = random.sample(new, len(new))
    one = QueryMemory(5).updated(past).updated(new)
    other = QueryMemory(5).updated(past).updated(shuffled)
    assert one.state_dict() == other.state_dict()
    places = random.sample(range(len(asked)), len(asked))
    turned = [asked[i] for i in places]
    assert other.novelty(turned).tolist() == one.novelty(asked)[places].tolist()


@given(st.lists(st.text(max_size=12), max_size=6), st.lists(st.text(max_size=12), max_size=4))
def test_checkpoint_brings_the_same_memory_back(past, new):
    memory = QueryMemory(4).updated(past)
    back = QueryMemory.from_state(json.loads(json.dumps(memory.state_dict())), 4)
    assert back.state_dict() == memory.state_dict()
    asked = [*past, *new]
    assert back.novelty(asked).tolist() == memory.novelty(asked).tolist()
    assert back.updated(new).state_dict() == memory.updated(new).state_dict()


def test_smaller_capacity_at_a_restart_forgets_the_oldest():
    memory = QueryMemory(3).updated(["one"]).updated(["two"]).updated(["three"])
    back = QueryMemory.from_state(memory.state_dict(), 2)
    assert back.duplicates(["one", "two", "three"]).tolist() == [False, True, True]
    assert len(back.updated(["four"])) == 2


@pytest.mark.parametrize("capacity", [0, CAPACITY_LIMIT + 1])
def test_capacity_has_bounds(capacity):
    with pytest.raises(ValueError, match=str(capacity)):
        QueryMemory(capacity)


def test_full_memory_tells_its_queries_apart():
    # As many rows as there are: one that spilt into a hash's bits would be found elsewhere.
    past = [f"query number {i} of many" for i in range(CAPACITY_LIMIT)]
    memory = QueryMemory(CAPACITY_LIMIT).updated(past)
    assert len(memory) == CAPACITY_LIMIT
    asked = [past[0], past[-1], "number 3 of many", "entirely new words"]
    expected = [0.0, 0.0, 1 - 7 / 9, 1.0]
    assert memory.novelty(asked) == pytest.approx(expected)
