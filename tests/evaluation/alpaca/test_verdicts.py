"""Verdict files in every form they are found in; what cannot be used is counted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from configs.errors import UserError
from evaluation.alpaca.verdicts import preference_of, read_verdicts, verdicts_of


@pytest.mark.parametrize(
    ("written", "preference"),
    [(1, 1), (2, 2), (1.5, 1.5), (0, 1.5), (0.0, 1.5), (1.25, 1.25), ("2", 2), (" 1.5 ", 1.5),
     ("0", 1.5), (True, None), ("m", None), ("", None), ([2], None), ({"a": 1}, None),
     (None, None), (math.nan, None), ("nan", None), (3, None), (-1, None), (0.5, None),
     (2.0000001, None), (math.inf, None), ("inf", None), (10**400, None)],
)  # fmt: skip
def test_a_preference_is_a_number_from_1_to_2_or_a_legacy_0(written, preference):
    value, reason = preference_of({"preference": written})
    if preference is None:
        assert math.isnan(value)
        assert reason in {"missing", "not_a_number", "outside_1_to_2"}
    else:
        assert (value, reason) == (preference, None)


def test_hostile_rows_are_dropped_one_by_one_and_counted():
    items = [
        {"preference": 2, "instruction": "a", "dataset": "koala"},
        None, 7, "text", [1], {},
        {"preference": math.nan}, {"preference": "m"}, {"preference": 5}, {"preference": 5.5},
        {"preference": None, "refusal": "400: no"},
        {"preference": 1, "instruction": 3, "dataset": ["x"], "generator_2": {}, "output_1": None},
    ]  # fmt: skip
    verdicts = verdicts_of(items)
    assert verdicts.kept_n.tolist() == [True, *[False] * 10, True]
    assert verdicts.dropped == {
        "not_an_object": 4, "missing": 2, "not_a_number": 1, "outside_1_to_2": 2, "refused": 1,
    }  # fmt: skip
    assert verdicts.subset_n[0] == "koala"
    assert verdicts.subset_n[-1] == ""
    assert verdicts.instruction_n[-1] is None


def test_lengths_come_from_the_texts_or_from_what_stands_in_their_place():
    rows = [
        {"preference": 1, "output_1": "abc", "output_2": ""},
        {"preference": 1, "len_output_1": 9, "len_output_2": "12"},
        {"preference": 1, "len_output_1": True, "len_output_2": -4},
    ]
    verdicts = verdicts_of(rows)
    np.testing.assert_equal(verdicts.length_1_n, [3, 9, math.nan])
    np.testing.assert_equal(verdicts.length_2_n, [0, 12, math.nan])


ROWS = [
    {"instruction": "a", "preference": 2.0, "dataset": "koala", "generator_2": "mine"},
    {"instruction": "b", "preference": 1.0, "dataset": "oasst", "generator_2": "mine"},
]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        "\ufeff" + json.dumps(ROWS),
        "\n".join(json.dumps(row) for row in ROWS) + "\n",
        json.dumps({k: {str(i): row[k] for i, row in enumerate(ROWS)} for k in ROWS[0]}),
    ],
    ids=["list", "with a byte order mark", "lines", "columns"],
)
def test_the_forms_of_a_file(tmp_path, text):
    (tmp_path / "annotations.json").write_text(text, "utf-8")
    verdicts = read_verdicts(tmp_path / "annotations.json")
    assert verdicts.preference_n.tolist() == [2, 1]
    assert verdicts.subset_n == ("koala", "oasst")
    assert verdicts.model == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("[{", "is no JSON"),
        ("3", "a JSON list of objects"),
        ("[" * 100_000, "nested too deeply"),
        (f'[{{"preference": {"9" * 5000}}}]', "is no JSON"),
        ("[]", "it is empty"),
        ('[{"preference": null}, {"preference": "m"}]', "1 missing, 1 not a number"),
    ],
)
def test_a_file_without_verdicts_is_refused_in_one_sentence(tmp_path, text, said):
    path = tmp_path / "annotations.json"
    if text is not None:
        path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=said) as caught:
        read_verdicts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_on_several_models_asks_which(tmp_path):
    path = tmp_path / "annotations.json"
    other = {"instruction": "a", "preference": 1, "generator_2": "other"}
    path.write_text(json.dumps([*ROWS, other, None, {"preference": 2}]), "utf-8")
    with pytest.raises(UserError, match=r"several models, mine \(2\), other \(1\)"):
        read_verdicts(path)
    assert read_verdicts(path, "other").preference_n.tolist() == [1]
    with pytest.raises(UserError, match="no verdict on 'third'"):
        read_verdicts(path, "third")


def test_rows_that_repeat_an_instruction_count_and_are_said(tmp_path):
    verdicts = verdicts_of([*ROWS, ROWS[0]])
    assert verdicts.kept_n.sum() == 3
    assert "1 rows repeat an instruction" in verdicts.notes[0]
