"""Verifiers that compare an answer with a reference answer: right is 1.0, wrong 0.0.

A verifier is any function `(query, answer, reference) -> float`, named `module:function` in the
configuration. It runs in a process of its own (`rewards.killable`), so it may hang or crash, and
this module imports little, since that process imports it.
"""

from __future__ import annotations

import re

_DELIMITER = re.compile(r"(?<!\\)(?:\\\\)*\$|\\boxed")
"""What begins mathematics in a reference; an escaped `\\$` is an amount of money."""


def exact_match(query: str, answer: str, reference: str | None) -> float:
    """Return whether the answer is the reference, white space at the ends and its amount aside."""
    del query
    return float(answer.split() == _wanted(reference).split())


def math_verify(query: str, answer: str, reference: str | None) -> float:
    """Return whether the last mathematical expression of the answer equals the reference's.

    The reference is the bare result (`42`, `\\frac{1}{2}`), or one between `$` or in `\\boxed`;
    it is not a worked solution.

    Raises:
        ValueError: There is no reference, or nothing mathematical in it.
    """
    del query
    from math_verify import parse, verify  # noqa: PLC0415 — sympy takes a second to import

    wanted = _wanted(reference)
    # Outside of a delimiter the library reads numbers only, not formulas.
    delimited = wanted if _DELIMITER.search(wanted) else f"${wanted}$"
    # Its own deadlines (by SIGALRM, 0 is none) would count a hang as a wrong answer; ours kill.
    gold = parse(delimited, parsing_timeout=0)
    if not gold:
        raise ValueError(f"math_verify finds no expression in the reference {wanted!r}")
    return float(verify(gold, parse(answer, parsing_timeout=0), timeout_seconds=0))


def _wanted(reference: str | None) -> str:
    if reference is None:
        raise ValueError("this verifier compares with a reference answer, and the query has none")
    return reference
