"""Adapters of published data sets, to be named as `source.dataset.adapter`.

Each takes a row as it was published, asks it as our evaluation does (`query`), and gives what the
built-in verifier of its kind compares with (`reference`).
"""

from __future__ import annotations

from evaluation.benchmarks import GSM8K, MATH500, Benchmark
from evaluation.coding_tasks import CodingTask, humaneval_task, mbpp_task
from evaluation.rows import Row


def gsm8k(row: Row) -> Row:
    """For `rewards.verifier:math_verify`: the number at the end of the worked solution."""
    return _problem(GSM8K, row)


def math500(row: Row) -> Row:
    """For `rewards.verifier:math_verify`: the result, in a box."""
    return _problem(MATH500, row)


def mbpp(row: Row) -> Row:
    """For `rewards.code:tests_pass`: the tests as one text."""
    return _task(mbpp_task(row))


def humaneval(row: Row) -> Row:
    """For `rewards.code:tests_pass`: the tests, and the call that runs them.

    Stricter than the evaluation: an answer has to hold the whole function, and the imports and
    helpers of the prompt that it needs.
    """
    return _task(humaneval_task(row))


def _problem(benchmark: Benchmark, row: Row) -> Row:
    assert benchmark.reference is not None, "benchmarks of mathematics have a result"
    return {"query": benchmark.query(row), "reference": benchmark.reference(row)}


def _task(task: CodingTask) -> Row:
    return {"query": task.query, "reference": task.tests.text}
