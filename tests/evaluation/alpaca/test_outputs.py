"""model_outputs.json: what is missing, doubled or in another order is joined and said."""

from __future__ import annotations

import json

import pytest

from configs.errors import UserError
from evaluation.alpaca.instructions import SUBSETS, Instruction, load_instructions
from evaluation.alpaca.outputs import Outputs, join, read_outputs, write_outputs
from tests.evaluation.alpaca import published

ASKED = [Instruction(f"question {i}", SUBSETS[i % 5]) for i in range(10)]
REFERENCE = Outputs("base", {i.text: f"base answers {i.text}" for i in ASKED})


def file_of(path, rows):
    path.write_text(json.dumps(rows), "utf-8")
    return path


def rows_of(texts, generator="mine"):
    return [
        {"instruction": text, "output": f"{generator} answers {text}", "generator": generator}
        for text in texts
    ]


@published.needs_data
@pytest.mark.parametrize("path", sorted((published.DATA / "outputs").glob("*.json")), ids=str)
def test_published_outputs_join_whole(path):
    instructions = load_instructions(published.INSTRUCTIONS)
    outputs = read_outputs(path)
    assert outputs.generator in {path.stem, "text_davinci_003", "gpt4_1106_preview"}
    joined = join(read_outputs(published.DATA / "outputs/alpaca-7b.json"), outputs, instructions)
    assert len(joined.pairs) == 805
    assert joined.notes == []


@published.needs_data
def test_written_answers_are_read_by_the_public_tool(tmp_path):
    from alpaca_eval.utils import load_or_convert_to_dataframe

    source = published.DATA / "outputs" / "text_davinci_003.json"
    outputs = read_outputs(source)
    instructions = load_instructions(published.INSTRUCTIONS)
    write_outputs(tmp_path / "model_outputs.json", outputs, instructions)
    ours = load_or_convert_to_dataframe(tmp_path / "model_outputs.json")
    theirs = load_or_convert_to_dataframe(source)
    assert ours[theirs.columns].equals(theirs)


def test_reordered_answers_are_joined_by_instruction(tmp_path):
    texts = [i.text for i in ASKED]
    outputs = read_outputs(file_of(tmp_path / "o.json", rows_of(texts[::-1])))
    joined = join(REFERENCE, outputs, ASKED)
    assert [pair.output_2 for pair in joined.pairs] == [f"mine answers {text}" for text in texts]
    assert [pair.output_1 for pair in joined.pairs] == [f"base answers {text}" for text in texts]
    assert joined.counts["reordered_model"]
    assert not joined.counts["reordered_reference"]
    assert joined.notes == ["the answers of 'mine' are in another order: joined by instruction"]


def test_missing_doubled_and_unknown_answers_are_said(tmp_path):
    rows = rows_of([i.text for i in ASKED[:8]])
    rows += [{**rows[0], "output": "a second thought"}, *rows_of(["never asked"])]
    rows += [{"instruction": ASKED[8].text, "output": None, "generator": "mine"}, "nonsense"]
    outputs = read_outputs(file_of(tmp_path / "o.json", rows))
    joined = join(REFERENCE, outputs, ASKED)
    assert len(joined.pairs) == 8
    assert joined.pairs[0].output_2 == "mine answers question 0", "the first answer counts"
    counts = {key: value for key, value in joined.counts.items() if key.endswith("_model")}
    assert counts == {
        "n_missing_model": 2, "n_doubled_model": 1, "n_unusable_model": 2,
        "n_not_evaluated_model": 1, "reordered_model": False,
    }  # fmt: skip
    assert "'mine' lacks 2 of 10 answers, the first to 'question 8'" in joined.notes
    assert len(joined.notes) == 4


def test_an_empty_answer_is_an_answer(tmp_path):
    row = {"instruction": ASKED[0].text, "output": "", "generator": "mine"}
    outputs = read_outputs(file_of(tmp_path / "o.json", [row]))
    (pair,) = join(REFERENCE, outputs, ASKED).pairs
    assert pair.output_2 == ""
    assert not pair.identical


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no answer"),
        ([{"instruction": "a"}, 3], "holds no answer"),
        (rows_of(["a"]) + rows_of(["b"], "other"), "several models, mine, other"),
    ],
)
def test_files_that_are_no_answers(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        read_outputs(file_of(tmp_path / "o.json", rows))


def test_a_file_without_names_is_named_by_itself(tmp_path):
    rows = [{"instruction": "a", "output": "b"}]
    assert read_outputs(file_of(tmp_path / "mistral.json", rows)).generator == "mistral"


def test_answers_to_nothing_that_was_asked(tmp_path):
    outputs = read_outputs(file_of(tmp_path / "o.json", rows_of(["never asked"])))
    with pytest.raises(UserError, match="no instruction has an answer of 'mine'"):
        join(REFERENCE, outputs, ASKED)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "is empty"),
        ([{"instruction": "a"}, {"instruction": "a"}], "says 1 instructions twice"),
        ([{"instruction": "a"}, {"text": "b"}], "item 1 has no"),
    ],
)
def test_instructions_that_cannot_be_joined(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        load_instructions(file_of(tmp_path / "i.json", rows))


def test_without_file_and_hub_a_file_is_asked_for(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="name a local file of the instructions"):
        load_instructions(None)
