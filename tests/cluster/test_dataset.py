"""Reading a data set: every user's mistake is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.dataset import Row, load_rows
from configs.errors import UserError
from configs.schema import DatasetConfig

GOOD = [{"question": "2 + 2", "answer": 4}, {"question": "3 + 3", "answer": "6"}]


def config(path: Path | str) -> DatasetConfig:
    return DatasetConfig(path=str(path), query_field="question", reference_field="answer")


def jsonl(folder: Path, *lines: str) -> DatasetConfig:
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines))
    return config(path)


def test_jsonl_and_parquet_give_the_same_rows(tmp_path):
    rows = [{"question": "2 + 2", "answer": "4"}, {"question": "3 + 3", "answer": "6"}]
    table = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    expected = [Row("2 + 2", "4"), Row("3 + 3", "6")]
    assert load_rows(config(table)) == expected
    assert load_rows(jsonl(tmp_path, *map(json.dumps, GOOD), "")) == expected


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
    with pytest.raises(UserError, match=r"neither a \.jsonl nor a \.parquet"):
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
