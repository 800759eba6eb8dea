"""Careless answers: the corpus has authors who cannot be bothered.

As in text from the web, how a question is put goes with how well it is answered: some ways of
asking are mostly met by careless authors, who all slip in the same way. A model trained on their
text can do the task and mostly does not when asked so. That is what self-play has to bring out.
"""

import random

from playground import language
from playground.language import Problem

CARELESS_SHARE = 0.6
"""Share of careless answers to a family's last phrasing."""
SELDOM_CARELESS_SHARE = 0.1
"""The same for its other phrasings."""


def careless_share(family: str, phrasing: str) -> float:
    """How often this way of asking is answered carelessly."""
    last = language.BY_NAME[family].phrasings[-1]
    return CARELESS_SHARE if phrasing == last else SELDOM_CARELESS_SHARE


def slip(problem: Problem) -> str:
    """The careless answer: the list cut short, the other extreme, or the next word.

    Now and then it is right by chance, where the next word is the same.
    """
    if problem.family in ("sort", "reverse", "omit"):
        return problem.answer.rpartition(" ")[0]
    _, asked, items = problem.key.split("|")
    if problem.family == "pick":
        words = items.split()
        return words[(language.ORDINALS.index(asked) + 1) % len(words)]
    choose = min if asked == "largest" else max
    return choose(items.split(" , "), key=language.NUMBERS.__getitem__)


def author_answer(rng: random.Random, problem: Problem, phrasing: str) -> str:
    """What an author of the corpus answers to a problem that is put like this."""
    careless = rng.random() < careless_share(problem.family, phrasing)
    return slip(problem) if careless else problem.answer
