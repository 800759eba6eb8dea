"""Words of many scripts, n-grams within a text, and hashes that every process agrees on."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.ngrams import ngrams, occurrences, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't SORT 3.14, please!", "don't sort 3.14 , please !"),
        ("What is 2+3?\n\nx_1 − 4", "what is 2 + 3 ? x_1 − 4"),
        ("Straße GRÜSSE", "strasse grüsse"),
        ("Привет, Мир", "привет , мир"),
        ("हिन्दी में लिखो", "हिन्दी में लिखो"),
        ("我去学校。", "我 去 学 校 。"),
        ("한국어 문장", "한국어 문장"),
        ("כתוב שיר", "כתוב שיר"),
        ("👨‍👩‍👧 ok", "👨‍👩‍👧 ok"),
        (" \t\n", ""),
        ("", ""),
    ],
)
def test_words(text, words):
    assert words_of(text) == tuple(words.split())


def test_one_letter_in_two_spellings_is_one_word():
    assert words_of("cafe\u0301") == words_of("caf\u00e9") == words_of("CAF\u00c9")


@given(st.text())
def test_no_word_is_empty_or_holds_a_space(text):
    words = words_of(text)
    assert all(words)
    assert tuple(" ".join(words).split(" ")) == words or not words


def grams(texts, order):
    """The n-grams of each text, written out."""
    return [Counter(zip(*(t[k:] for k in range(order)), strict=False)) for t in texts]


@given(st.lists(st.lists(st.sampled_from("abc")), max_size=5), st.integers(1, 4))
def test_rows_and_counts_are_those_of_each_text(texts, order):
    rows, hashes = ngrams([tuple(t) for t in texts], order)
    for row, expected in enumerate(grams(texts, order)):
        _, counts = np.unique(hashes[rows == row], return_counts=True)
        assert sorted(counts) == sorted(expected.values())
    all_grams = {gram for one in grams(texts, order) for gram in one}
    assert len(np.unique(hashes)) == len(all_grams)


@given(st.lists(st.lists(st.sampled_from("abc")), min_size=2, max_size=2), st.integers(1, 2))
def test_two_texts_share_each_ngram_as_often_as_both_hold_it(texts, order):
    rows, elements = occurrences(*ngrams([tuple(t) for t in texts], order))
    assert len(set(zip(rows.tolist(), elements.tolist(), strict=True))) == len(rows)
    left, right = grams(texts, order)
    shared = np.intersect1d(elements[rows == 0], elements[rows == 1])
    assert len(shared) == (left & right).total()
    assert (np.diff(rows) >= 0).all()


def test_hashes_are_the_same_in_every_process():
    code = "from rewards.ngrams import *; print(ngrams([words_of('to be or not to be')], 2)[1])"
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1] == f"{ngrams([words_of('to be or not to be')], 2)[1]}\n"
