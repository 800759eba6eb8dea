"""pass@1 on coding tasks: one answer each, its code run with the task's tests in the sandbox."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from actors.generator import Generator
from actors.records import NO_ROOM, Completion, GenerationRequest, Sampling, TokenIds
from evaluation.asking import endings, parts
from evaluation.coding_tasks import CodingTask
from evaluation.intervals import wilson
from rewards.code_tests import Verdict, try_code
from rewards.sandbox import Limits, Sandbox

LIMITS = Limits(wall_s=60.0, cpu_s=30)
"""Of one answer. The slowest reference solution, MBPP's 123, takes some seconds of processor time;
others a tenth."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer, the code that was taken from it, and how it did.

    `finish_reason` is the answer's, as in `actors.records.Completion`.
    """

    task: CodingTask
    answer: str
    finish_reason: str
    code: str
    verdict: Verdict


async def evaluate(
    generator: Generator,
    tasks: Sequence[CodingTask],
    encode: Callable[[str], TokenIds],
    sampling: Sampling,
    sandbox: Sandbox,
    at_once: int | None = None,
) -> list[Attempt]:
    """Answer each task once and test the code, in the order of the tasks.

    Args:
        generator: Makes the answers.
        tasks: What is asked.
        encode: Makes the Solver's prompt of a query.
        sampling: How answers are sampled.
        sandbox: Made before the engines start, so that a machine without one refuses at once.
        at_once: Sandboxes at a time; None: half the processors.

    Raises:
        SandboxError: A sandbox did not start.
    """
    threads = ThreadPoolExecutor(at_once or default_at_once(), thread_name_prefix="sandbox")
    try:
        # In parts, so that some are tested while others are written.
        done = await asyncio.gather(
            *(_part(generator, part, encode, sampling, sandbox, threads) for part in parts(tasks))
        )
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    return [attempt for part in done for attempt in part]


async def _part(
    generator: Generator,
    tasks: Sequence[CodingTask],
    encode: Callable[[str], TokenIds],
    sampling: Sampling,
    sandbox: Sandbox,
    threads: ThreadPoolExecutor,
) -> list[Attempt]:
    loop = asyncio.get_running_loop()
    made = await generator.generate([GenerationRequest(encode(t.query), sampling) for t in tasks])
    return await asyncio.gather(
        *(
            loop.run_in_executor(threads, attempt, sandbox, task, completion)
            for task, completion in zip(tasks, made, strict=True)
        )
    )


def attempt(sandbox: Sandbox, task: CodingTask, completion: Completion) -> Attempt:
    """Test the code of one answer; a task that could not be asked has failed.

    Raises:
        SandboxError: The sandbox did not start.
    """
    answer, ended = completion.text, completion.finish_reason
    if ended == NO_ROOM:
        return Attempt(task, answer, ended, "", Verdict("failed", "the prompt left no room"))
    code = task.program(answer)
    return Attempt(task, answer, ended, code, try_code(sandbox, code, task.tests))


def summarise(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """The numbers: {n, n_cut, n_no_room, passed, pass@1, ci95, kinds}; rates are fractions.

    `kinds` counts what became of the answers, as `rewards.sandbox.Result` names it; `n_cut` and
    `n_no_room` as in `evaluation.asking.endings`.
    """
    kinds = Counter(attempt.verdict.kind for attempt in attempts)
    n, passed = len(attempts), kinds["passed"]
    return {
        "n": n,
        **endings(attempt.finish_reason for attempt in attempts),
        "passed": passed,
        "pass@1": passed / n if n else None,
        "ci95": list(wilson(passed, n)),
        "kinds": dict(sorted(kinds.items())),
    }


def default_at_once() -> int:
    """Half the processors that this process may use: the engines have the others."""
    return max(1, len(os.sched_getaffinity(0)) // 2)
