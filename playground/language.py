"""The language of the playground: instruction tasks in words, each with one exact answer.

Invariant: the text of a problem is all there is to know about it. `parse` reads family, level and
answer off the query itself, so a query that the Challenger invents is verified without reference.

A family has phrasings (fixed words around slots written `____`), a way to draw slot contents of a
given level, and a way to solve them. Words are separated by single spaces, punctuation included.
Standard library only: the verifier runs in subprocesses that should start quickly.
"""

import hashlib
import random
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "development", "heldout"]
Slots = tuple[str, ...]

SLOT = "____"
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
WORDS = tuple(
    "red blue green gold cat dog bird fish sun moon rain snow tree road ship king "
    "milk salt bread apple".split()
)
ORDINALS = tuple("first second third fourth fifth sixth seventh eighth ninth tenth".split())
UNITS = tuple(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen".split()
)
TENS = tuple("twenty thirty forty fifty sixty seventy eighty ninety".split())
HELDOUT_PERCENT, DEVELOPMENT_PERCENT = 20, 15
DRAWS = 500


class UnreadableError(ValueError):
    """A query that is no task of this language; `reason` is a short snake_case name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Problem:
    """One task as a user would write it, with its only right answer.

    `key` names the problem whatever its phrasing: two texts with one key ask the same thing.
    """

    family: str
    level: int
    text: str
    answer: str
    key: str = field(compare=False)


@dataclass(frozen=True)
class Family:
    """A kind of task. `solve` maps slot contents to (level, canonical contents, answer)."""

    name: str
    task: str
    phrasings: tuple[str, ...]
    levels: int
    draw: Callable[[random.Random, int], Slots]
    solve: Callable[[Slots], tuple[int, Slots, str]]


def spell(number: int) -> str:
    """0 ≤ number ≤ 99 in words: 42 is "forty two"."""
    if number < 20:
        return UNITS[number]
    tens, units = divmod(number, 10)
    return f"{TENS[tens - 2]} {UNITS[units]}" if units else TENS[tens - 2]


NUMBERS = {spell(number): number for number in range(100)}
SHORT_NUMBERS = (*UNITS[1:], *TENS)
LONG_NUMBERS = tuple(text for text in NUMBERS if " " in text)


def _number(text: str) -> int:
    if text not in NUMBERS:
        raise UnreadableError("bad_number")
    return NUMBERS[text]


def _items(text: str, known: tuple[str, ...], fewest: int, most: int) -> list[str]:
    items = text.split()
    if any(item not in known for item in items):
        raise UnreadableError("unknown_item")
    if len(items) < fewest:
        raise UnreadableError("too_few_items")
    if len(items) > most:
        raise UnreadableError("too_many_items")
    return items


def _draw_items(rng: random.Random, known: tuple[str, ...], count: int) -> str:
    return " ".join(rng.choice(known) for _ in range(count))


def _draw_sort(rng: random.Random, level: int) -> Slots:
    return (_draw_items(rng, LETTERS, level + 2),)


def _solve_sort(slots: Slots) -> tuple[int, Slots, str]:
    items = _items(slots[0], LETTERS, 3, 9)
    return max(1, min(5, len(items) - 2)), slots, " ".join(sorted(items))


def _draw_reverse(rng: random.Random, level: int) -> Slots:
    return (_draw_items(rng, WORDS, level + 2),)


def _solve_reverse(slots: Slots) -> tuple[int, Slots, str]:
    items = _items(slots[0], WORDS, 3, 8)
    return min(5, len(items) - 2), slots, " ".join(reversed(items))


def _draw_compare(rng: random.Random, level: int) -> Slots:
    known = SHORT_NUMBERS if level <= 2 else LONG_NUMBERS
    count = 2 if level % 2 else rng.randint(3, 4)
    numbers = rng.sample(known, count)
    return rng.choice(("largest", "smallest")), " , ".join(numbers)


def _solve_compare(slots: Slots) -> tuple[int, Slots, str]:
    choose = {"largest": max, "smallest": min}.get(slots[0])
    if choose is None:
        raise UnreadableError("unknown_item")
    texts = slots[1].split(" , ")
    numbers = [_number(text) for text in texts]
    if not 2 <= len(numbers) <= 5:
        raise UnreadableError("too_few_items" if len(numbers) < 2 else "too_many_items")
    level = 1 + (len(numbers) > 2) + 2 * any(" " in text for text in texts)
    return level, slots, spell(choose(numbers))


def _draw_omit(rng: random.Random, level: int) -> Slots:
    """One to three of the words are the one to leave out, and not all of them."""
    omitted = rng.choice(WORDS)
    others = [word for word in WORDS if word != omitted]
    times = rng.randint(1, min(3, level))
    items = [omitted] * times + [rng.choice(others) for _ in range(level + 2 - times)]
    rng.shuffle(items)
    return omitted, " ".join(items)


def _solve_omit(slots: Slots) -> tuple[int, Slots, str]:
    (omitted,), items = _items(slots[0], WORDS, 1, 1), _items(slots[1], WORDS, 2, 9)
    kept = [item for item in items if item != omitted]
    if not 0 < len(kept) < len(items):
        raise UnreadableError("nothing_to_leave_out" if kept else "nothing_left")
    return max(1, min(5, len(items) - 2)), slots, " ".join(kept)


def _draw_pick(rng: random.Random, level: int) -> Slots:
    count = level + 2
    return ORDINALS[rng.randrange(count)], _draw_items(rng, WORDS, count)


def _solve_pick(slots: Slots) -> tuple[int, Slots, str]:
    if slots[0] not in ORDINALS:
        raise UnreadableError("unknown_item")
    position, items = ORDINALS.index(slots[0]), _items(slots[1], WORDS, 3, 9)
    if position >= len(items):
        raise UnreadableError("no_such_position")
    return min(5, len(items) - 2), slots, items[position]


FAMILIES = (
    Family(
        "sort",
        "sorting letters",
        (
            "Please sort the letters ____ .",
            "Put in alphabetical order ____ .",
            "List from first to last the letters ____ .",
        ),
        5,
        _draw_sort,
        _solve_sort,
    ),
    Family(
        "reverse",
        "saying words backwards",
        ("Say backwards ____ .", "Reverse the words ____ .", "Read from the end ____ ."),
        5,
        _draw_reverse,
        _solve_reverse,
    ),
    Family(
        "compare",
        "comparing numbers",
        ("Find the ____ number among ____ .", "Name the ____ of the numbers ____ ."),
        4,
        _draw_compare,
        _solve_compare,
    ),
    Family(
        "omit",
        "leaving out a word",
        ("Leave out the word ____ from ____ .", "Say without ____ the words ____ ."),
        5,
        _draw_omit,
        _solve_omit,
    ),
    Family(
        "pick",
        "finding a word by its place",
        ("Tell me the ____ word in ____ .", "Name the ____ word of ____ ."),
        5,
        _draw_pick,
        _solve_pick,
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}
CELLS = tuple((family.name, level) for family in FAMILIES for level in range(1, family.levels + 1))

FREE_CHOICE = ("", "", 3.0)
CHALLENGES: tuple[tuple[str, str, float], ...] = (
    *((family.task, phrasing, 1.0) for family in FAMILIES for phrasing in family.phrasings),
    FREE_CHOICE,
)
"""(task, template, weight): what the Challenger is asked for; the empty one leaves it free."""


def _pattern(phrasing: str) -> re.Pattern[str]:
    return re.compile("(.+?)".join(re.escape(piece) for piece in phrasing.split(SLOT)))


PATTERNS = tuple((family, _pattern(text)) for family in FAMILIES for text in family.phrasings)


def fill(template: str, slots: Slots) -> str:
    """The template with its slots filled from left to right."""
    for content in slots:
        template = template.replace(SLOT, content, 1)
    return template


def normalise(text: str) -> str:
    """Single spaces between words, none at the ends."""
    return " ".join(text.split())


def generate(
    rng: random.Random,
    family: str | None = None,
    level: int | None = None,
    phrasing: str | None = None,
) -> Problem:
    """A random problem; what is not given is drawn uniformly."""
    chosen = BY_NAME[family] if family else rng.choice(FAMILIES)
    level = level or rng.randint(1, chosen.levels)
    slots = chosen.draw(rng, level)
    return _problem(chosen, fill(phrasing or rng.choice(chosen.phrasings), slots), slots)


def _problem(family: Family, text: str, slots: Slots) -> Problem:
    level, canonical, answer = family.solve(slots)
    return Problem(family.name, level, text, answer, "|".join((family.name, *canonical)))


def read(text: str) -> Problem:
    """The problem that `text` states. Raises `UnreadableError` where it states none."""
    text = normalise(text)
    if not text:
        raise UnreadableError("empty")
    if SLOT in text:
        raise UnreadableError("unfilled_template")
    for family, pattern in PATTERNS:
        if match := pattern.fullmatch(text):
            return _problem(family, text, match.groups())
    raise UnreadableError("unknown_task")


def parse(text: str) -> Problem | None:
    """The problem that `text` states, or None."""
    try:
        return read(text)
    except UnreadableError:
        return None


def readable(query: str) -> str | None:
    """Admission gate: None for a task this language can read, else why it cannot."""
    try:
        read(query)
    except UnreadableError as error:
        return error.reason
    return None


def identity(query: str) -> str:
    """What a query asks, however it is put: equal for two phrasings of one problem."""
    problem = parse(query)
    return normalise(query) if problem is None else problem.key


def verify(query: str, answer: str, reference: str | None) -> float:  # noqa: ARG001 (a protocol)
    """1.0 if `answer` is what the query asks for, else 0.0; `reference` is not needed."""
    problem = parse(query)
    return float(problem is not None and normalise(answer) == problem.answer)


def split_of(problem: Problem) -> Split:
    """The split a problem belongs to for ever, by a stable hash of its key."""
    digest = hashlib.sha256(problem.key.encode()).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    if percent < HELDOUT_PERCENT:
        return "heldout"
    return "development" if percent < HELDOUT_PERCENT + DEVELOPMENT_PERCENT else "train"


def _fresh(
    rng: random.Random, split: Split, cell: tuple[str, int], known: Collection[str]
) -> Problem | None:
    """A problem of the split and cell with no known key; None where the cell seems used up."""
    for _ in range(DRAWS):
        problem = generate(rng, *cell)
        if split_of(problem) == split and problem.key not in known:
            return problem
    return None


def problems(split: Split, n: int, seed: int = 0) -> list[Problem]:
    """`n` distinct problems of a split, as many from each family and level as can be.

    Raises ValueError where the split holds fewer.
    """
    rng, found = random.Random(f"{split}:{seed}"), dict[str, Problem]()
    while len(found) < n:
        fresh = [problem for cell in CELLS if (problem := _fresh(rng, split, cell, found))]
        if not fresh:
            raise ValueError(f"the {split} split holds no {n} distinct problems")
        found.update((problem.key, problem) for problem in fresh[: n - len(found)])
    return list(found.values())


def development(n: int = 1000, seed: int = 0) -> list[Problem]:
    """Problems to tune on."""
    return problems("development", n, seed)


def heldout(n: int = 1000, seed: int = 0) -> list[Problem]:
    """Problems to score once, at the end."""
    return problems("heldout", n, seed)
