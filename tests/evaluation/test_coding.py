"""Coding tasks: HumanEval and MBPP as published, prompts, and pass@1 of known answers."""

import asyncio
import gzip
import json
import re
from functools import cache

import numpy as np
import pytest

from actors.records import NO_ROOM, Completion
from configs.errors import UserError
from evaluation.benchmark_table import coding_summary
from evaluation.coding import LIMITS, Attempt, attempt, evaluate, summarise
from evaluation.coding_tasks import CodingTask, humaneval, mbpp
from rewards.code_tests import CodeTests, Verdict
from rewards.sandbox import Sandbox
from tests.conftest import DATA
from tests.evaluation.known import SAMPLING, Known, encode

HUMANEVAL, MBPP = DATA / "HumanEval.jsonl.gz", DATA / "mbpp.jsonl"


@pytest.fixture
def sandbox(debian_program):
    debian_program("bwrap", "bubblewrap")
    return made()


@cache
def made():
    return Sandbox(LIMITS)


def said(answer, finish_reason="stop"):
    ids = np.zeros(1, np.int32)
    return Completion(ids, ids, answer, finish_reason, 0, 0, 0)


def rows(path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def solutions():
    """An answer with the published solution for each task, by the task's name."""
    of_humaneval = {r["task_id"]: r["prompt"] + r["canonical_solution"] for r in rows(HUMANEVAL)}
    of_mbpp = {f"MBPP/{r['task_id']}": r["code"].replace("\r", "") for r in rows(MBPP)}
    return {n: f"So:\n```python\n{c}\n```" for n, c in (of_humaneval | of_mbpp).items()}


def results(tasks, answers, sandbox):
    generator = Known({task.query: answers[task.name] for task in tasks})
    return asyncio.run(evaluate(generator, tasks, encode, SAMPLING, sandbox))


def test_published_data_is_whole(data):
    assert len(humaneval(HUMANEVAL)) == 164
    tasks = mbpp(MBPP)
    assert [task.name for task in tasks] == [f"MBPP/{n}" for n in range(11, 511)]
    assert len({task.query for task in tasks}) >= 490
    assert len(mbpp(MBPP, range(1000))) == 974


def test_published_solutions_pass(data, sandbox):
    """All of HumanEval, and every tenth task of MBPP's test split."""
    tasks = humaneval(HUMANEVAL) + mbpp(MBPP)[5::10]
    attempts = results(tasks, solutions(), sandbox)
    failed = {a.task.name: a.verdict for a in attempts if a.verdict.kind != "passed"}
    assert failed == {}
    assert summarise(attempts)["pass@1"] == 1.0


def test_pass_at_1_of_known_answers(data, sandbox):
    tasks = humaneval(HUMANEVAL)[:12] + mbpp(MBPP)[:8]
    answers = solutions()
    for i, task in enumerate(tasks):
        if i % 4 == 1:
            answers[task.name] = ""
        elif i % 4 == 2:
            answers[task.name] = f"```python\ndef {task.tests.names[0]}(*args): return 'no'\n```"
        elif i % 4 == 3:
            answers[task.name] += "\n```python\nprint('an example')\n```"
    attempts = results(tasks, answers, sandbox)
    assert [a.task.name for a in attempts] == [task.name for task in tasks]
    assert [a.verdict.kind == "passed" for a in attempts] == [i % 4 in (0, 3) for i in range(20)]
    summary = summarise(attempts)
    assert (summary["n"], summary["passed"], summary["pass@1"]) == (20, 10, 0.5)
    assert summary["kinds"] == {"failed": 10, "passed": 10}
    low, high = summary["ci95"]
    assert 0.2 < low < 0.5 < high < 0.8


def test_answer_may_just_continue_the_function(data, sandbox):
    task = humaneval(HUMANEVAL)[0]
    body = rows(HUMANEVAL)[0]["canonical_solution"]
    for answer in (body, f"```python\n{body}```"):
        assert attempt(sandbox, task, said(answer)).verdict.kind == "passed"


def test_a_task_that_could_not_be_asked_has_failed_whatever_its_own_code_does(sandbox):
    task = CodingTask("t", "q", CodeTests("assert f()", ("f",), ()), given="def f(): return 1")
    assert attempt(sandbox, task, said("")).verdict.kind == "passed"
    attempts = [
        attempt(sandbox, task, said("", NO_ROOM)),
        Attempt(task, "a", "length", "c", Verdict("passed")),
    ]
    numbers = summarise(attempts)
    assert (numbers["n"], numbers["passed"]) == (2, 1)
    assert (numbers["n_cut"], numbers["n_no_room"]) == (1, 1)
    notes = coding_summary("mbpp", attempts)["notes"]
    assert [note.partition(" ")[0] for note in notes] == ["1", "1"]


def test_answer_may_leave_out_what_the_problem_gives(data, sandbox):
    """Its imports and helpers; but the tests use their own helpers, whatever the answer does."""
    task = next(t for t in humaneval(HUMANEVAL) if t.name == "HumanEval/38")
    right = "def decode_cyclic(s): return encode_cyclic(encode_cyclic(s))"
    assert attempt(sandbox, task, said(right)).verdict.kind == "passed"
    cheat = "def encode_cyclic(s): return s\ndef decode_cyclic(s): return s"
    assert attempt(sandbox, task, said(cheat)).verdict.kind == "failed"


def test_queries_show_the_problem_and_nothing_of_its_solution(data):
    of_humaneval = dict(zip(humaneval(HUMANEVAL), rows(HUMANEVAL), strict=True))
    for task, row in of_humaneval.items():
        assert row["prompt"].strip() in task.query
        assert row["canonical_solution"].strip() not in task.query
        assert "def check(" not in task.query
    published = {f"MBPP/{row['task_id']}": row for row in rows(MBPP)}
    for task in mbpp(MBPP):
        row = published[task.name]
        assert row["text"].strip() in task.query
        assert all(test.replace("\r", "") in task.query for test in row["test_list"])
        assert not re.search(rf"^def {task.tests.names[-1]}\b", task.query, re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task_id": 11}', r"line 1 has no field .text.; it has \['task_id'\]"),
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is not a JSON object"),
        ("", "holds no rows"),
        (
            '{"task_id": 11, "text": "", "test_setup_code": "", "test_list": ["assert f("]}',
            "line 1: the tests are not Python",
        ),
    ],
)
def test_file_that_is_no_data_set_is_named(tmp_path, text, message):
    path = tmp_path / "mbpp.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        mbpp(path)
    assert str(path) in str(caught.value)


def test_absent_file_is_named(tmp_path):
    for path in (tmp_path / "absent.jsonl", tmp_path / "absent.jsonl.gz"):
        with pytest.raises(UserError, match=f"{path} cannot be read"):
            humaneval(path)


def test_without_the_hub_a_file_is_asked_for(monkeypatch):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"openai_humaneval.*no network; name a local file"):
        humaneval()


def test_hub_rows_are_tasks(data, monkeypatch):
    import datasets

    asked = []

    def hub(name, config, split):
        asked.append((name, config, split))
        return rows(MBPP)[:20]

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert [task.name for task in mbpp()] == [f"MBPP/{n}" for n in range(11, 21)]
    assert asked == [("google-research-datasets/mbpp", "full", "test")]
