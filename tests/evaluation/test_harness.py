"""Benchmarks through lm_eval, with answers whose scores are known by construction."""

import asyncio
import json
from dataclasses import replace

import pytest

from actors.records import NO_ROOM
from configs.errors import UserError
from evaluation import benchmarks, harness
from evaluation.asking import Fitting
from evaluation.benchmarks import GSM8K, IFEVAL, MATH500
from evaluation.rows import load_rows
from tests.conftest import DATA
from tests.evaluation.known import SAMPLING, Known, encode

pytest.importorskip("lm_eval", reason="needs lm_eval: make setup installs it")


def scores(benchmark, rows, answer_of):
    answers = {benchmark.query(row): answer_of(i, row) for i, row in enumerate(rows)}
    return asyncio.run(harness.evaluate(benchmark, Known(answers), encode, SAMPLING, rows))


def values(result):
    return {name: metric["value"] for name, metric in result.summary()["metrics"].items()}


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def gsm8k_answer(row):
    return row["answer"].replace("####", "The answer is")


GSM8K_METRICS = ("exact_match,strict-match", "exact_match,flexible-extract", "math_verify")


def test_gsm8k_published_answers_are_right_and_others_wrong(data):
    rows = rows_of(DATA / "gsm8k_test.jsonl")[:200]
    wrong = {1: "", 3: "It is 5.\nThe answer is 99999"}
    result = scores(GSM8K, rows, lambda i, row: wrong.get(i % 4, gsm8k_answer(row)))
    assert values(result) == dict.fromkeys(GSM8K_METRICS, 0.5)
    assert result.summary()["n"] == 200
    for i, item in enumerate(result.items):
        assert item.row == rows[i]
        assert item.values == dict.fromkeys(GSM8K_METRICS, float(i % 2 == 0))


def test_gsm8k_metrics_are_told_apart():
    expected = {
        "The answer is $1002.": (1, 1, 1),
        "It is 1,002": (0, 1, 1),
        "The answer is 1002, not 7": (1, 0, 1),
        "The answer is \\boxed{1002}": (0, 1, 1),
        "The answer is 1003": (0, 0, 0),
    }
    rows = [{"question": f"{i}", "answer": "<<1+1=2>>\n#### 1,002"} for i in range(len(expected))]
    result = scores(GSM8K, rows, lambda i, _: [*expected][i])
    for item in result.items:
        assert tuple(item.values[name] for name in GSM8K_METRICS) == expected[item.answer], item


def test_math_published_answers_are_right_and_others_wrong(data):
    rows = rows_of(DATA / "math500_test.jsonl")
    others = [row | {"problem": f"Not {row['problem']}"} for row in rows[::10]]

    def answer(i, row):
        return row["solution"] if i < len(rows) else f"So \\boxed{{1729 + {row['answer']}}}."

    result = scores(MATH500, rows + others, answer)
    for i, item in enumerate(result.items):
        right = float(i < len(rows))
        assert item.values == {"exact_match": right, "math_verify": right}, item
    assert values(result) == {"exact_match": 500 / 550, "math_verify": 500 / 550}


def test_math_metrics_are_told_apart():
    expected = {
        "\\boxed{\\frac12}": (1, 1),
        "\\boxed{0.50}": (0, 1),
        "It is $\\frac{1}{2}$": (0, 1),
        "\\boxed{\\frac{1}{2}} or \\boxed{2}": (0, 0),
        "\\boxed{\\frac{1}{2": (0, 0),
        "\\fbox{2}": (0, 0),
        "": (0, 0),
    }
    rows = [{"problem": f"{i}", "answer": "\\frac{1}{2}"} for i in range(len(expected))]
    result = scores(MATH500, rows, lambda i, _: [*expected][i])
    for item in result.items:
        given = (item.values["exact_match"], item.values["math_verify"])
        assert given == expected[item.answer], item


IFEVAL_NAMES = [
    f"{level}_level_{how}_acc" for level in ("prompt", "inst") for how in ("strict", "loose")
]


def ifeval_row(key, *instructions):
    names, kwargs = zip(*instructions, strict=True)
    return {
        "key": key,
        "prompt": f"Prompt {key}",
        "instruction_id_list": list(names),
        "kwargs": list(kwargs),
    }


NO_COMMA = ("punctuation:no_comma", {})
QUOTED = ("startend:quotation", {})
SHORT = ("length_constraints:number_words", {"relation": "less than", "num_words": 4})
ONE_SENTENCE = (
    "length_constraints:number_sentences",
    {"relation": "less than", "num_sentences": 2},
)


def test_ifeval_counts_prompts_and_instructions():
    rows = [ifeval_row(1, NO_COMMA), ifeval_row(2, NO_COMMA, SHORT), ifeval_row(3, QUOTED)]

    def of(*answers):
        return values(scores(IFEVAL, rows, lambda i, row: answers[i]))

    assert of("a b", "a b", '"a"') == dict.fromkeys(IFEVAL_NAMES, 1.0)
    assert of("a, b", "a, b c d", "a") == dict.fromkeys(IFEVAL_NAMES, 0.0)
    assert of("", "", "") == dict.fromkeys(IFEVAL_NAMES, 0.0)
    # One of the second prompt's instructions; the third without its first line.
    assert of("a b", "a b c d", 'Here:\n"a"') == {
        "prompt_level_strict_acc": 1 / 3,
        "prompt_level_loose_acc": 2 / 3,
        "inst_level_strict_acc": 2 / 4,
        "inst_level_loose_acc": 3 / 4,
    }


def test_ifeval_instructions_have_no_interval_of_their_own():
    metrics = scores(IFEVAL, [ifeval_row(1, NO_COMMA, SHORT)], lambda i, row: "a").summary()[
        "metrics"
    ]
    assert metrics["inst_level_strict_acc"]["ci95"] is None
    low, high = metrics["prompt_level_strict_acc"]["ci95"]
    assert 0 < low < high == 1.0


def test_ifeval_without_the_model_of_sentences_leaves_prompts_out(monkeypatch):
    monkeypatch.setattr(benchmarks, "_has_punkt", lambda: False)
    rows = [ifeval_row(1, NO_COMMA), ifeval_row(2, NO_COMMA, ONE_SENTENCE)]
    result = scores(IFEVAL, rows, lambda i, row: "a")
    assert result.summary()["n"] == 1
    assert "punkt_tab" in result.notes[0]
    assert benchmarks._ifeval_scoring().can_score(rows[0])
    monkeypatch.setattr(benchmarks, "_has_punkt", lambda: True)
    assert benchmarks._ifeval_scoring().can_score(rows[1])
    assert not benchmarks._ifeval_scoring().notes


class Cut(Known):
    async def generate(self, requests):
        made = await super().generate(requests)
        return [replace(completion, finish_reason="length") for completion in made]


def test_cut_answers_and_prompts_without_room_are_counted():
    rows = [{"question": question, "answer": "#### 1"} for question in ("a", "long " * 99, "b")]
    answers = {GSM8K.query(row): "The answer is 1" for row in rows}
    generator = Fitting(Cut(answers), len(GSM8K.query(rows[0])) + 1)
    result = asyncio.run(harness.evaluate(GSM8K, generator, encode, SAMPLING, rows))
    assert values(result) == dict.fromkeys(GSM8K_METRICS, 2 / 3)
    assert [item.finish_reason for item in result.items] == ["length", NO_ROOM, "length"]
    summary = result.summary()
    assert (summary["n"], summary["n_cut"], summary["n_no_room"]) == (3, 2, 1)
    assert [note.partition(" ")[0] for note in summary["notes"]] == ["2", "1"]


def test_ifeval_with_nothing_left_to_score_is_a_sentence(monkeypatch):
    monkeypatch.setattr(benchmarks, "_has_punkt", lambda: False)
    rows = [ifeval_row(1, ONE_SENTENCE), ifeval_row(2, NO_COMMA, ONE_SENTENCE)]
    with pytest.raises(UserError, match=r"none of the 2 problems can be scored.*punkt_tab.*limit"):
        scores(IFEVAL, rows, lambda i, row: "a")


def test_ifeval_published_prompts_can_all_be_scored(data, monkeypatch):
    monkeypatch.setattr(benchmarks, "_has_punkt", lambda: False)
    result = scores(IFEVAL, rows_of(DATA / "ifeval_input_data.jsonl"), lambda i, row: "")
    assert result.summary()["n"] == 477
    assert values(result) == dict.fromkeys(IFEVAL_NAMES, 0.0)


def test_answers_without_a_verdict_are_counted(monkeypatch):
    monkeypatch.setattr(harness, "VERIFY", "tests.rewards.verifiers:obey")
    monkeypatch.setattr(harness, "VERIFY_DEADLINE_S", 1.0)
    rows = [{"question": f"{i}", "answer": "#### 1"} for i in range(4)]
    answers = ["true", "hang", "raise", "true"]
    result = scores(GSM8K, rows, lambda i, row: answers[i])
    assert values(result)["math_verify"] == 0.5
    assert result.notes == ("math_verify hung or failed on 2 answers; they count as wrong",)


def test_queries_hold_no_result(data):
    files = {GSM8K: "gsm8k_test.jsonl", MATH500: "math500_test.jsonl"}
    for benchmark, file in files.items():
        for row in rows_of(DATA / file):
            query = benchmark.query(row)
            assert row.get("question", row.get("problem")) in query
            assert row.get("solution", row["answer"]) not in query


def test_error_of_the_generator_is_raised():
    class Broken:
        async def generate(self, requests):
            raise RuntimeError("the engine is gone")

    rows = [{"question": "q", "answer": "#### 1"}]
    with pytest.raises(RuntimeError, match="the engine is gone"):
        asyncio.run(harness.evaluate(GSM8K, Broken(), encode, SAMPLING, rows))


def test_rows_of_something_else_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl line 1 has no field 'question'"):
        load_rows(path, GSM8K.hub, GSM8K.fields)


@pytest.mark.parametrize(
    ("benchmark", "asked"),
    [
        (GSM8K, ("openai/gsm8k", "main", "test")),
        (MATH500, ("HuggingFaceH4/MATH-500", None, "test")),
        (IFEVAL, ("google/IFEval", None, "train")),
    ],
)
def test_without_a_file_the_hub_is_asked(monkeypatch, benchmark, asked):
    import datasets

    def hub(name, config, split):
        raise ConnectionError(f"asked for {(name, config, split)}")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(UserError) as caught:
        load_rows(None, benchmark.hub, benchmark.fields)
    assert str(asked) in str(caught.value)
