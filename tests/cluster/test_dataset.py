"""Reading a data set: every user's mistake is named with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.dataset import Row, load_rows
from configs.errors import UserError
from configs.load import load
from configs.schema import DatasetConfig
from tests.conftest import ROOT

GOOD = [{"question": "2 + 2", "answer": 4}, {"question": "3 + 3", "answer": "6"}]


def config(path: Path | str) -> DatasetConfig:
    return DatasetConfig(path=str(path), query_field="question", reference_field="answer")


def jsonl(folder: Path, *lines: str) -> DatasetConfig:
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines))
    return config(path)


def test_every_form_of_a_file_gives_the_same_rows(tmp_path):
    rows = [{"question": "2 + 2", "answer": "4"}, {"question": "3 + 3", "answer": "6"}]
    table, packed = tmp_path / "data.parquet", tmp_path / "data.jsonl.gz"
    pq.write_table(pa.Table.from_pylist(rows), table)
    lines = jsonl(tmp_path, *map(json.dumps, GOOD), "")
    packed.write_bytes(gzip.compress(Path(lines.path).read_bytes()))
    whole = tmp_path / "data.json"
    whole.write_text(json.dumps(GOOD))
    for form in (config(table), config(packed), config(whole), lines):
        assert load_rows(form) == [Row("2 + 2", "4"), Row("3 + 3", "6")]


def test_the_published_instructions_are_the_data_of_the_grpo_preset(data):
    path = data / "alpaca_sample.json"
    preset = ROOT / "configs" / "llama-3.2-3b-grpo.yaml"
    dataset = load(preset, [f"source.dataset.path={path}"]).source.dataset
    queries = [row.query for row in load_rows(dataset)]
    published = json.loads(path.read_text())
    assert len(queries) == len(published) == 2000
    assert sum("\n\n" in query for query in queries) >= sum(bool(p["input"]) for p in published)
    for query, row in zip(queries, published, strict=True):
        assert query == f"{row['instruction']}\n\n{row['input']}".removesuffix("\n\n")


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path):
    row = json.dumps({"question": "a\u2028b", "answer": "c"}, ensure_ascii=False)
    assert load_rows(jsonl(tmp_path, row)) == [Row("a\u2028b", "c")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", r"line 2 is not JSON"),
        ("[1]", r"line 2 is not a JSON object"),
        ('{"question": "x"}', r"line 2 has no field 'answer'; it has \['question'\]"),
        ('{"question": "  ", "answer": "x"}', r"line 2: field 'question' is not a text"),
        ('{"question": "x", "answer": null}', r"line 2: field 'answer' is neither a text nor"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, said):
    with pytest.raises(UserError, match=said):
        load_rows(jsonl(tmp_path, json.dumps(GOOD[0]), line))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows"),
        ("[]", "holds no rows"),
        ("[", r"data\.json is not JSON: .*line 1"),
        ('{"question": "x"}\n{"question": "y"}', r"is not JSON: .* belong into a \.jsonl file"),
        ('{"question": "x"}', r"data\.json is a JSON dict, not a list of objects"),
        ('[{"question": "x", "answer": "y"}, 3]', r"data\.json row 2 is not a JSON object"),
        ('[{"question": "x", "answer": "y"}, {}]', r"row 2 has no field 'question'"),
    ],
)
def test_a_malformed_list_is_named(tmp_path, text, said):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_rows(config(path))


@pytest.mark.parametrize("damage", [b"\x00" * 4, b""])
def test_a_packed_file_that_cannot_be_unpacked_is_named(tmp_path, damage):
    path = tmp_path / "data.jsonl.gz"
    packed = gzip.compress(json.dumps(GOOD[0]).encode())
    path.write_bytes(packed[:12] + damage + packed[16:])
    with pytest.raises(UserError, match=r"source\.dataset\.path .*data\.jsonl\.gz cannot be read"):
        load_rows(config(path))


def adapted(path: Path | str, adapter: str, **more: str) -> DatasetConfig:
    return DatasetConfig(path=str(path), adapter=adapter, reference_field="reference", **more)


def test_an_adapter_is_given_every_field(tmp_path):
    row = {"question": "2 + 2?", "answer": "So.\n#### 4", "other": 1}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data.parquet")
    for path in tmp_path.iterdir():
        (made,) = load_rows(adapted(path, "evaluation.adapters:gsm8k"))
        assert made.query.startswith("2 + 2?\n")
        assert made.reference == "4"


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (
            "evaluation.adapters:gsm8k",
            r"line 1: source\.dataset\.adapter 'evaluation\.adapters:gsm8k' cannot read it"
            r" \(KeyError: 'question'\); it has \['text'\]: name",
        ),
        ("builtins:len", r"line 1: source\.dataset\.adapter 'builtins:len' returned a int"),
        ("builtins:dict", r"line 1 has no field 'query'; it has \['text'\]"),
        ("evaluation.adapters:gsm", r"source\.dataset\.adapter .*gsm' cannot be imported"),
    ],
)
def test_an_adapter_of_other_rows_is_a_sentence(tmp_path, adapter, said):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "x"}')
    with pytest.raises(UserError, match=said):
        load_rows(adapted(path, adapter))


def test_a_subset_of_a_hub_data_set_is_asked_for(monkeypatch):
    asked = []

    def hub(*named, **settings):
        asked.append((*named, settings))
        return [{"question": "2 + 2?", "answer": "#### 4"}]

    monkeypatch.setattr("datasets.load_dataset", hub)
    rows = load_rows(adapted("openai/gsm8k", "evaluation.adapters:gsm8k", subset="main"))
    assert asked == [("openai/gsm8k", "main", {"split": "train"})]
    assert [row.reference for row in rows] == ["4"]


def test_a_context_follows_its_query_where_it_is_not_empty(tmp_path):
    alpaca = [{"question": "Translate.", "input": "le chat"}, {"question": "Sing.", "input": ""}]
    settings = {"query_field": "question", "context_field": "input"}

    def queries(*rows: dict) -> list[str]:
        jsonl(tmp_path, *map(json.dumps, rows))
        named = DatasetConfig(path=str(tmp_path / "data.jsonl"), **settings)
        return [row.query for row in load_rows(named)]

    assert queries(*alpaca, {"question": "Run.", "input": None}) == [
        "Translate.\n\nle chat", "Sing.", "Run.",
    ]  # fmt: skip
    with pytest.raises(UserError, match="line 1 has no field 'input'"):
        queries({"question": "Sing."})
    with pytest.raises(UserError, match="line 2: field 'input' is not a text"):
        queries(alpaca[0], {"question": "Sing.", "input": 3})


def test_missing_empty_and_unknown_files(tmp_path):
    with pytest.raises(UserError, match=r"missing\.jsonl cannot be read"):
        load_rows(config(tmp_path / "missing.jsonl"))
    with pytest.raises(UserError, match=r"holds no rows"):
        load_rows(jsonl(tmp_path, ""))
    other = tmp_path / "data.csv"
    other.write_text("question,answer")
    with pytest.raises(UserError, match=r"data\.csv is no file of rows: .*'\.jsonl'"):
        load_rows(config(other))
    truncated = tmp_path / "data.parquet"
    truncated.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"data\.parquet cannot be read"):
        load_rows(config(truncated))


def test_a_parquet_file_without_the_field(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"question": ["x"]}), path)
    with pytest.raises(UserError, match=r"row 1 has no field 'answer'"):
        load_rows(config(path))


def test_a_hub_id_that_cannot_be_had(monkeypatch):
    with pytest.raises(UserError, match=r"'no/such-data'.*cannot be loaded"):
        load_rows(config("no/such-data"))
