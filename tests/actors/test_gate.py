"""The admission gate: every reason once, and what it must not reject."""

from __future__ import annotations

import numpy as np
import pytest

from actors.gate import Gate
from actors.records import Completion, Query
from actors.roles import CHALLENGER_PROMPT, CHALLENGER_SLOTS, PromptFile
from configs.errors import UserError
from configs.schema import GateConfig

OURS = PromptFile.load(CHALLENGER_PROMPT, CHALLENGER_SLOTS)


def even_length(query: str) -> str | None:
    return None if len(query) % 2 == 0 else "odd"


def upset(query: str) -> str | None:
    raise ValueError(query)


def written(text: str, finish_reason: str = "stop") -> Query:
    ids = np.zeros(1, dtype=np.int32)
    made = Completion(ids, ids, text, finish_reason, 0, 0, 0)
    return Query("g0", text, completion=made)


def gate(prompt: PromptFile = OURS, fits: bool = True, **settings: object) -> Gate:
    return Gate(GateConfig.model_validate(settings), prompt, lambda query: fits)


def test_a_good_query_is_admitted():
    assert gate().check(written("Sort the letters of b d a c."), {"another"}) is None


def test_a_query_of_a_data_set_has_no_completion_and_is_not_cut_off():
    assert gate().check(Query("g0", "What is three?"), set()) is None


@pytest.mark.parametrize("text", ["", "abc"])
def test_empty(text: str):
    assert gate().check(written(text), set()) == "empty"


def test_cut_off_by_the_token_limit():
    assert gate().check(written("Sort the letters", "length"), set()) == "cut_off"


@pytest.mark.parametrize(
    "text",
    [
        "Sort b a c. [END OF TEMPLATE]",
        "[START OF TEMPLATE]\nSort b a c.",
        # Twelve words of the prompt, in another case and with other punctuation.
        "a language task is made of pairs -- An Input, which somebody GIVES",
    ],
)
def test_echo_of_markers_or_prompt(text: str):
    assert gate().check(written(text), set()) == "echo"


def test_fewer_words_in_a_row_than_the_limit_are_no_echo():
    text = "Is it true that a language task is made of pairs?"
    assert gate().check(written(text), set()) is None
    assert gate(echo_words=6).check(written(text), set()) == "echo"


def test_the_template_is_expected_in_the_query_and_no_echo():
    template = "Take the following letters and put every one of them into its place of the alphabet"
    prompt = PromptFile("Fill in:\n{{template}}\nabout {{task}}.", CHALLENGER_SLOTS)
    assert gate(prompt).check(written(template + ": b a"), set()) is None


def test_words_next_to_the_template_are_no_markers():
    prompt = PromptFile("Write\n{{template}}\nNow\n{{task}}", CHALLENGER_SLOTS)
    assert gate(prompt).check(written("Write down what comes Now."), set()) is None


def test_runs_of_words_do_not_reach_across_a_slot():
    prompt = PromptFile("one two three {{task}} four five six {{template}}", CHALLENGER_SLOTS)
    assert gate(prompt, echo_words=4).check(written("one two three four five six"), set()) is None


def test_duplicate_within_the_iteration():
    assert gate().check(written("Sort b a."), {"Sort b a."}) == "duplicate"


def test_no_room_for_an_answer():
    assert gate(fits=False).check(written("Sort b a."), set()) == "too_long"


def test_the_task_verifier_gives_its_reason():
    strict = gate(task_verifier="tests.actors.test_gate:even_length")
    assert strict.check(written("four"), set()) is None
    assert strict.check(written("fives"), set()) == "task_odd"


def test_a_task_verifier_that_fails_rejects_the_query():
    strict = gate(task_verifier="tests.actors.test_gate:upset")
    assert strict.check(written("Sort b a."), set()) == "task_error"


def test_a_task_verifier_that_is_not_there_is_named():
    for name in ("tests.actors.test_gate:absent", "absent_module:verify"):
        with pytest.raises(UserError, match=f"gate.task_verifier '{name}' cannot be imported"):
            gate(task_verifier=name)
