"""Careless answers are wrong, and come as often as the way of asking says."""

from __future__ import annotations

import random

import pytest

from playground import corpus, language, slips


@pytest.mark.parametrize("family", language.BY_NAME)
def test_a_slip_is_an_answer_of_the_right_kind_and_wrong(family: str):
    rng = random.Random(5)
    problems = [corpus.draw_problem(rng, family) for _ in range(300)]
    wrong = [language.verify(p.text, slips.slip(p), None) == 0 for p in problems]
    # A word that stands twice in a row is its own neighbour: the slip is right by chance.
    assert sum(wrong) >= 0.9 * len(problems)
    words = set(language.LETTERS) | set(language.WORDS) | set(" ".join(language.NUMBERS).split())
    assert all(set(slips.slip(p).split()) <= words for p in problems)


@pytest.mark.parametrize(
    ("place", "share"), [(-1, slips.CARELESS_SHARE), (0, slips.SELDOM_CARELESS_SHARE)]
)
def test_the_way_of_asking_decides_how_often(place: int, share: float):
    rng = random.Random(7)
    phrasing = language.BY_NAME["sort"].phrasings[place]
    problem = corpus.draw_problem(rng, "sort", phrasing)
    answers = [slips.author_answer(rng, problem, phrasing) for _ in range(2000)]
    assert answers.count(slips.slip(problem)) / 2000 == pytest.approx(share, abs=0.04)
