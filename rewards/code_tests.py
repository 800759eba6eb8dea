"""Tests of a piece of code: what they need of it, finding it in an answer, and running both."""

from __future__ import annotations

import ast
import builtins
import json
import re
import signal
import symtable
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards import code_trial
from rewards.sandbox import Kind, Sandbox

_BLOCK = re.compile(r"^([ \t]*)```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
"""A fenced block with its indentation; the last one may lack its end: an answer that was cut."""
_TRIAL = Path(code_trial.__file__).read_text()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a solution did: `kind` as in `rewards.sandbox.Result`, and why, in a sentence."""

    kind: Kind
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CodeTests:
    """Assert statements, with the names they take from the solution.

    `modules` are those of the standard library that they use and do not import.
    """

    text: str
    names: tuple[str, ...]
    modules: tuple[str, ...]


def read_tests(text: str) -> CodeTests:
    """Find out what tests need; a built-in name counts only where they need no other one.

    Raises:
        ValueError: They are not Python, or test nothing of a solution.
    """
    try:
        tree = ast.parse(text)
        free = _free_names(symtable.symtable(text, "<tests>", "exec"))
    except SyntaxError as error:
        raise ValueError(f"the tests are not Python: {error}") from error
    attributes = {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    modules = free & attributes & sys.stdlib_module_names
    names = free - modules
    # `assert sum(10, 15) == 6` is of a solution that is to be named so.
    names = {name for name in names if not hasattr(builtins, name)} or names
    if not names or not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise ValueError(f"the tests assert nothing of a solution: {text[:80]!r}")
    return CodeTests(text, tuple(sorted(names)), tuple(sorted(modules)))


def find_code(answer: str, names: Sequence[str]) -> str:
    """Return the code of an answer: the fenced block that defines most of the names, else all.

    Of several that define as many it is the first: models show the solution before its use.
    """
    found = _BLOCK.findall(answer)
    blocks = [re.sub(rf"(?m)^{indent}", "", block) for indent, block in found] or [answer]
    return max(blocks, key=lambda block: sum(defines(block, name) for name in names))


def defines(code: str, name: str) -> bool:
    """Whether code defines a name at its top level; it is not parsed, since nobody has read it."""
    pattern = rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]+)?=(?!=)"
    return re.search(pattern, code, re.MULTILINE) is not None


def try_code(sandbox: Sandbox, code: str, tests: CodeTests) -> Verdict:
    """Run tests against code in the sandbox.

    Raises:
        SandboxError: The sandbox did not start.
    """
    job = {
        "solution": code,
        "names": tests.names,
        "modules": tests.modules,
        "tests": tests.text,
    }
    result = sandbox.run(_TRIAL, json.dumps(job))
    if result.kind not in ("passed", "failed"):
        return Verdict(result.kind, result.stderr[-500:])
    if not result.stdout:
        return Verdict("crashed", f"no verdict: {result.stderr[-500:]}")
    verdict = json.loads(result.stdout)
    if verdict["passed"]:
        return Verdict("passed")
    return Verdict(_kind(verdict), verdict["error"])


def _kind(verdict: dict[str, str | int | bool]) -> Kind:
    if verdict.get("ended") == -signal.SIGXCPU:
        return "timeout"
    if str(verdict["error"]).startswith("MemoryError"):
        return "memory"
    ended = verdict.get("ended")
    return "crashed" if isinstance(ended, int) and ended < 0 else "failed"


def _free_names(table: symtable.SymbolTable) -> set[str]:
    """Names that a module uses and does not define."""
    used: set[str] = set()
    for inner in _tables(table):
        for symbol in inner.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or inner is table):
                used.add(symbol.get_name())
    own = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
    }
    return used - own


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)
