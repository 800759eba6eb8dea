"""Published data sets as training data: what their verifiers say of right and of wrong answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from actors.function_process import find_function
from cluster.dataset import load_rows
from configs.schema import DatasetConfig
from evaluation.rows import json_lines
from rewards.code_tests import read_tests


def fenced(code: str) -> str:
    return f"So:\n```python\n{code}\n```"


def no_number(reference: str) -> str:
    return f"The answer is not {reference}, it is \\boxed{{1234567}}."


def no_solution(reference: str) -> str:
    return fenced(f"def {read_tests(reference).names[0]}(*given): return 'no'")


@dataclass(frozen=True)
class Published:
    """A file, and how its rows are read; `wrong` makes an answer of the reference."""

    file: str
    n: int
    verifier: str
    problem: str
    right: Callable[[dict[str, Any]], str]
    wrong: Callable[[str], str]


MATH, CODE = "rewards.verifier:math_verify", "rewards.code:tests_pass"
SETS = {
    "gsm8k": Published(
        "gsm8k_test.jsonl", 1319, MATH, "question", lambda row: row["answer"], no_number
    ),
    "math500": Published(
        "math500_test.jsonl", 500, MATH, "problem", lambda row: row["solution"], no_number
    ),
    "mbpp": Published(
        "mbpp.jsonl", 974, CODE, "text", lambda row: fenced(row["code"]), no_solution
    ),
    "humaneval": Published(
        "HumanEval.jsonl.gz",
        164,
        CODE,
        "prompt",
        lambda row: fenced(row["prompt"] + row["canonical_solution"]),
        no_solution,
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_a_published_answer_scores_1_and_a_wrong_one_0(data, debian_program, name):
    published = SETS[name]
    if published.verifier == CODE:
        debian_program("bwrap", "bubblewrap")
    path = data / published.file
    config = DatasetConfig(
        path=str(path), adapter=f"evaluation.adapters:{name}", reference_field="reference"
    )
    rows, raw = load_rows(config), [row for _, row in json_lines(path)]
    assert len(rows) == len(raw) == published.n
    verify = find_function(published.verifier)
    for row, original in list(zip(rows, raw, strict=True))[::60][:3]:
        right = published.right(dict(original))
        assert original[published.problem].strip() in row.query
        assert right not in row.query
        assert verify(row.query, right, row.reference) == 1.0
        assert verify(row.query, published.wrong(row.reference), row.reference) == 0.0
