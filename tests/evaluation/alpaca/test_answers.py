"""Answers of models: made once, kept as they come, never taken for another's, all accounted for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from actors.records import NO_ROOM
from configs.errors import UserError
from evaluation.alpaca.evaluate import Contestant
from evaluation.alpaca.instructions import Instruction, first_of_each
from evaluation.alpaca.table import table
from tests.evaluation.alpaca.contestants import (
    Answers,
    contestant,
    encode,
    run,
)
from tests.evaluation.alpaca.judge_server import JudgeServer


class Ends:
    """Ends the answer to question i as told, "stop" where nothing is."""

    def __init__(self, **reasons) -> None:
        self.reasons = reasons

    async def generate(self, requests):
        made = await Answers(lambda i: i % 2).generate(requests)
        ends = (self.reasons.get(f"q{r.prompt_token_ids[-1]}", "stop") for r in requests)
        return [replace(one, finish_reason=end) for one, end in zip(made, ends, strict=True)]


def test_answers_that_came_before_an_interruption_are_kept(tmp_path, settings):
    out, lines = tmp_path / "out", []
    base, broken = contestant("base", lambda i: False), contestant("mine", bool, breaks_after=16)
    with JudgeServer() as server:
        with pytest.raises(RuntimeError, match="the engine is gone"):
            run(settings(server.url), broken, base, out)
        rest = contestant("mine", bool)
        run(settings(server.url), rest, contestant("base", bool), out, say=lines.append)
    assert len(broken.generator.requests) == 16
    seeds = [r.seed for r in broken.generator.requests + rest.generator.requests]
    assert sorted(seeds) == [*range(40)]
    assert f"mine: answers 24 instructions, 16 are in {out / 'answers.jsonl'} already" in lines
    assert any(line.startswith("base: its answers are in") for line in lines)


def test_answers_of_another_model_of_the_same_name_are_not_taken(tmp_path, settings):
    """Two runs in folders of one name, or one run whose iterations were undone and played again."""
    out, base = tmp_path / "out", contestant("base", lambda i: False)
    broken = contestant("lsp@7", bool, weights="a", breaks_after=24)
    with JudgeServer() as server:
        with pytest.raises(RuntimeError, match="the engine is gone"):
            run(settings(server.url), broken, base, out)
        other = contestant("lsp@7", bool, weights="b")
        run(settings(server.url), other, base, out)
        assert len(other.generator.requests) == 40
        with pytest.raises(UserError, match="another value of model: name another folder"):
            run(settings(server.url), contestant("lsp@7", bool, weights="a"), base, out)


def test_a_limit_takes_the_first_of_each_subset_and_says_so(tmp_path, settings):
    model, base = contestant("mine", bool), contestant("base", lambda i: False)
    with JudgeServer() as server:
        result = run(settings(server.url), model, base, tmp_path / "out", limit=12)
        with pytest.raises(UserError, match="another value of instructions, limit"):
            run(settings(server.url), model, base, tmp_path / "out")
    assert [int(r.prompt_token_ids[-1]) for r in model.generator.requests] == [*range(12)]
    assert [block["n_total"] for block in result["subsets"].values()] == [3, 3, 2, 2, 2]
    assert result["settings"]["limit"] == 12
    note = "only 12 of 40 instructions, the first of each subset by turns"
    assert note in table(result).splitlines()


def test_a_limit_is_even_however_the_subsets_follow_each_other():
    rows = [Instruction(f"{subset} {i}", subset) for subset in "abc" for i in range(9)]
    texts = [one.text for one in first_of_each(rows, 5)]
    assert texts == ["a 0", "a 1", "b 0", "b 1", "c 0"]
    assert first_of_each(rows, None) == first_of_each(rows, 99) == rows


def test_prompts_without_room_are_missing_and_cut_answers_counted(tmp_path, settings):
    out = tmp_path / "out"
    ends = Ends(q3=NO_ROOM, q4="length", q5="length")
    model = Contestant("mine", {"weights": "mine"}, ends, encode)
    with JudgeServer() as server:
        result = run(settings(server.url), model, contestant("base", bool), out)
    assert result["n_total"] == 39
    join = result["join"]
    assert (join["n_missing_model"], join["n_no_room_model"], join["n_cut_model"]) == (1, 1, 2)
    assert join["n_no_room_reference"] == join["n_cut_reference"] == 0
    written = json.loads((out / "model_outputs.json").read_text())
    assert "question 3" not in [row["instruction"] for row in written]
    said = table(result)
    for sentence in (
        "'mine' lacks 1 of 40 answers, the first to 'question 3'",
        "1 prompts leave 'mine' no room for an answer in rollout.context",
        "2 answers of 'mine' were cut",
    ):
        assert sentence in said
    # Nothing is kept of what was not asked: with more room it is.
    again = contestant("mine", bool)
    with JudgeServer() as server:
        assert run(settings(server.url), again, contestant("base", bool), out)["n_total"] == 40
    assert [int(r.prompt_token_ids[-1]) for r in again.generator.requests] == [3]
