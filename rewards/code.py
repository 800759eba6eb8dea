"""The verifier of coding tasks: does the code in an answer pass the tests in the reference?

Importing this module tries the sandbox out, so that a run on a machine without one does not start.
"""

from __future__ import annotations

from functools import lru_cache

from rewards.code_tests import CodeTests, find_code, read_tests, try_code
from rewards.sandbox import Limits, Sandbox

LIMITS = Limits(wall_s=4.0, cpu_s=3)
"""For all tests of one answer: less than the 5 s that a verifier has by default."""

_SANDBOX = Sandbox(LIMITS)


def tests_pass(query: str, answer: str, reference: str | None) -> float:
    """Return 1.0 where every assert statement of the reference holds, else 0.0.

    The code is that of the answer's fenced block, or the whole answer where it has none. It runs
    in a process apart from the tests (`rewards.code_trial`).

    Raises:
        ValueError: There is no reference, or it is no Python that asserts something.
        SandboxError: The sandbox did not start.
    """
    del query
    if reference is None:
        raise ValueError("this verifier runs the tests in the reference, and the query has none")
    tests = _read(reference)
    verdict = try_code(_SANDBOX, find_code(answer, tests.names), tests)
    return float(verdict.kind == "passed")


@lru_cache(maxsize=64)
def _read(reference: str) -> CodeTests:
    """The G answers of a query share its tests."""
    return read_tests(reference)
