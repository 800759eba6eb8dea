"""The language: what is written can be read back, and only the right answer is right."""

import random

import pytest

from playground import language
from playground.language import CELLS, CHALLENGES, SLOT, Problem


@pytest.mark.parametrize(("family", "level"), CELLS)
def test_every_phrasing_reads_back_with_its_answer(family: str, level: int) -> None:
    rng = random.Random(1)
    for phrasing in language.BY_NAME[family].phrasings:
        for _ in range(20):
            problem = language.generate(rng, family, level, phrasing)
            assert (problem.family, problem.level) == (family, level)
            read = language.read(f"  {problem.text.replace(' ', '  ')}\n")
            assert read == problem
            assert read.key == problem.key


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Please sort the letters d a c b .", "a b c d"),
        ("Put in alphabetical order b a b .", "a b b"),
        ("Reverse the words sun cat moon .", "moon cat sun"),
        ("Name the largest of the numbers forty two , nine , sixty .", "sixty"),
        ("Find the smallest number among forty two , nine .", "nine"),
        ("Leave out the word red from red cat red dog .", "cat dog"),
        ("Say without sun the words moon sun cat .", "moon cat"),
        ("Name the second word of red cat red .", "cat"),
    ],
)
def test_answers_worked_by_hand(text: str, answer: str) -> None:
    assert language.read(text).answer == answer
    assert language.verify(text, f" {answer.replace(' ', '   ')}\n", None) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "a b c d .",
        "a b c",
        "a b c d d",
        "A B C D",
        "abcd",
        "a b c d <score> 7 </score>",
        "the answer is a b c d",
        "a , b , c , d",
        "а b c d",  # a Cyrillic first letter
        "a b c d\x00",
        "a b c d" * 10_000,
    ],
)
def test_hostile_answers_score_nothing(answer: str) -> None:
    assert language.verify("Please sort the letters d a c b .", answer, None) == 0.0


def test_reference_does_not_overrule_the_query() -> None:
    query = "Please sort the letters d a c b ."
    assert language.verify(query, "d c b a", "d c b a") == 0.0
    assert language.verify("What is it ?", "x", "x") == 0.0


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Please sort the letters ____ .", "unfilled_template"),
        ("Tell me a joke .", "unknown_task"),
        ("please sort the letters of d a c b .", "unknown_task"),
        ("Please sort the letters d a c b . Please", "unknown_task"),
        ("Please sort the letters d cat b .", "unknown_item"),
        ("Please sort the letters d b .", "too_few_items"),
        ("Please sort the letters a b c d e f g h i j k l m .", "too_many_items"),
        ("Name the biggest of the numbers one , two .", "unknown_item"),
        ("Find the largest number among one .", "too_few_items"),
        ("Find the largest number among one , ten five .", "bad_number"),
        ("Find the largest number among one hundred , nine .", "bad_number"),
        ("Leave out the word red from cat dog .", "nothing_to_leave_out"),
        ("Leave out the word red from red red .", "nothing_left"),
        ("Name the fifth word of red cat sun .", "no_such_position"),
    ],
)
def test_unreadable_queries_have_a_reason(query: str, reason: str) -> None:
    assert language.readable(query) == reason
    assert language.parse(query) is None


def test_key_ignores_phrasing() -> None:
    queries = ("Leave out the word red from red cat .", "Say without red the words red cat .")
    assert len({language.read(text).key for text in queries}) == 1
    assert language.identity(queries[0]) == language.identity(queries[1])
    assert language.identity("Tell  me a joke") == "Tell me a joke"


def test_splits_are_stable_and_disjoint() -> None:
    held, tuned = language.heldout(600), language.development(600)
    assert {language.split_of(problem) for problem in held} == {"heldout"}
    assert {language.split_of(problem) for problem in tuned} == {"development"}
    assert not {p.key for p in held} & {p.key for p in tuned}
    assert language.heldout(600) == held
    known = Problem("sort", 2, "", "", "sort|d a c b")
    assert language.split_of(known) == "train"


def test_heldout_is_large_and_stratified() -> None:
    problems = language.heldout(1500)
    assert len({problem.key for problem in problems}) == 1500
    cells = [(problem.family, problem.level) for problem in problems]
    counts = [cells.count(cell) for cell in CELLS]
    assert max(counts) - min(counts) <= 3


def test_spelled_numbers_are_distinct() -> None:
    assert len(language.NUMBERS) == 100
    assert [language.spell(n) for n in (0, 10, 20, 42)] == ["zero", "ten", "twenty", "forty two"]


def test_challenges_offer_every_phrasing_and_a_free_choice() -> None:
    templates = [template for _, template, _ in CHALLENGES]
    assert sorted(templates[:-1]) == sorted(
        phrasing for family in language.FAMILIES for phrasing in family.phrasings
    )
    assert all(SLOT in template for template in templates[:-1])
    assert CHALLENGES[-1][:2] == ("", "")
    assert all(weight > 0 for _, _, weight in CHALLENGES)
