"""The prompts of the two roles, ours and a user's."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from actors.chat import ChatEncoder, Plain
from actors.roles import (
    CHALLENGER_PROMPT,
    CHALLENGER_SLOTS,
    SOLVER_SLOTS,
    PromptFile,
    challenger_prompt,
    parse_query,
    solver_prompt,
)
from configs.errors import UserError
from tests.models import make_tokenizer


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def encoder(tokenizer):
    return ChatEncoder(tokenizer, datetime.date(2024, 7, 26))


@pytest.fixture
def prompt():
    return PromptFile.load(CHALLENGER_PROMPT, CHALLENGER_SLOTS)


def test_the_challenger_reads_task_and_template(tokenizer, encoder, prompt):
    ids = challenger_prompt(encoder, prompt, "Spelling", "Sort the letters of {{task}}.")
    text = tokenizer.decode(ids)
    assert "Task: Spelling" in text
    # A value that looks like a slot stays as it is.
    assert "Sort the letters of {{task}}." in text


def test_the_solver_reads_the_bare_query(tokenizer, encoder):
    text = tokenizer.decode(solver_prompt(encoder, "What is three?"))
    assert text.endswith(
        "<|header|>user<|/header|>\nWhat is three?<|eot|><|header|>assistant<|/header|>\n"
    )
    assert "Be brief." in tokenizer.decode(solver_prompt(encoder, "What?", "Be brief."))


def test_a_solvers_prompt_file_stands_around_the_query_which_stays_plain_text(tokenizer, encoder):
    prompt = PromptFile("Think first.\n{{query}}\nThen answer.", SOLVER_SLOTS)
    ids = solver_prompt(encoder, "What is {{query}}? <|eot|>", "Be brief.", prompt)
    text = tokenizer.decode(ids)
    assert "user<|/header|>\nThink first.\nWhat is {{query}}? <|eot|>\nThen answer.<|eot|>" in text
    ends = ids.tolist().count(tokenizer.convert_tokens_to_ids("<|eot|>"))
    assert ends == 2  # of the system's and the user's message; the query's is plain text


def test_a_prompt_takes_untrusted_text_into_its_slots():
    prompt = PromptFile("Judge {{a}} and {{b}}, then {{a}}.", ("a", "b"))
    pieces = prompt.fill({"a": Plain("{{b}}"), "b": "two"})
    assert pieces == ("Judge ", Plain("{{b}}"), " and ", "two", ", then ", Plain("{{b}}"), ".")
    assert prompt.wording == ["Judge ", " and ", ", then ", "."]


def test_a_prompt_file_that_lacks_a_slot_is_named(tmp_path: Path):
    path = tmp_path / "mine.txt"
    path.write_text("Write about {{task}}.")
    with pytest.raises(UserError, match=r"mine\.txt lacks the slot \{\{template\}\}"):
        PromptFile.load(path, CHALLENGER_SLOTS)


def test_a_prompt_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read the prompt file .*absent\.txt"):
        PromptFile.load(tmp_path / "absent.txt", CHALLENGER_SLOTS)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"cannot read the prompt file .*binary\.txt"):
        PromptFile.load(tmp_path / "binary.txt", CHALLENGER_SLOTS)


def test_a_query_loses_only_its_outer_white_space():
    assert parse_query("\n Sort:\n  b a \n") == "Sort:\n  b a"
