"""HumanEval and MBPP as tasks for a chat model: read from a file or the hub, prompts our own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from evaluation.rows import HubData, Row, load_rows
from rewards.code_tests import CodeTests, defines, find_code, read_tests

HUMANEVAL = HubData("openai/openai_humaneval")
MBPP = HubData("google-research-datasets/mbpp", "full")
MBPP_TEST_IDS = range(11, 511)
"""MBPP's own test split; 1 to 10 are for prompts, the others for training and validation."""

_HUMANEVAL_QUERY = """\
Complete this Python function. Reply with one ```python block that holds the whole function and \
the imports it needs, and nothing that calls it.

```python
{prompt}
```"""
_MBPP_QUERY = """\
{text}

These tests must pass:

```python
{tests}
```

Reply with one ```python block that holds your code and the imports it needs, without the tests."""


@dataclass(frozen=True, slots=True)
class CodingTask:
    """One problem: the query, and the tests of the code in its answer.

    `given` is code the problem comes with, which goes before the answer's; `opening` is the
    beginning of the function that an answer may just continue, "" where there is none.
    """

    name: str
    query: str
    tests: CodeTests
    given: str = ""
    opening: str = ""

    def program(self, answer: str) -> str:
        """Return the code to be tested."""
        code = find_code(answer, self.tests.names)
        if self.opening and not any(defines(code, name) for name in self.tests.names):
            return self.opening + code
        return f"{self.given}\n{code}"


def humaneval(path: Path | None = None) -> list[CodingTask]:
    """The 164 tasks, from a JSON-lines file (also .gz) or from the hub.

    Raises:
        UserError: The file or the hub cannot be read, or holds something else.
    """
    rows = load_rows(path, HUMANEVAL, ("task_id", "prompt", "entry_point", "test"))
    return [_task(place, row, humaneval_task) for place, row in rows]


def mbpp(path: Path | None = None, ids: Iterable[int] = MBPP_TEST_IDS) -> list[CodingTask]:
    """The tasks with these ids, from a JSON-lines file (also .gz) or from the hub's test split.

    Raises:
        UserError: The file or the hub cannot be read, or holds something else.
    """
    wanted = set(ids)
    rows = load_rows(path, MBPP, ("task_id", "text", "test_setup_code", "test_list"))
    return [_task(place, row, mbpp_task) for place, row in rows if row["task_id"] in wanted]


def humaneval_task(row: Row) -> CodingTask:
    """The task of a published row; ValueError where its prompt or tests are no such."""
    prompt, name = row["prompt"], row["entry_point"]
    start = re.search(rf"^def[ \t]+{re.escape(name)}\b", prompt, re.MULTILINE)
    if start is None:
        raise ValueError(f"its prompt does not define {name}")
    # Helpers that the prompt defines are the tests' own copies, not what the answer makes of them.
    given = prompt[: start.start()]
    tests = read_tests(f"{given}\n{row['test']}\ncheck({name})\n")
    query = _HUMANEVAL_QUERY.format(prompt=prompt.rstrip())
    return CodingTask(row["task_id"], query, tests, given, opening=prompt)


def mbpp_task(row: Row) -> CodingTask:
    """The task of a published row; ValueError where its tests are none."""
    tests = "\n".join([*filter(None, [row["test_setup_code"].strip()]), *row["test_list"]])
    query = _MBPP_QUERY.format(text=row["text"].strip(), tests=tests.replace("\r", ""))
    return CodingTask(f"MBPP/{row['task_id']}", query, read_tests(tests))


def _task(place: str, row: Row, task_of: Callable[[Row], CodingTask]) -> CodingTask:
    try:
        return task_of(row)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error
