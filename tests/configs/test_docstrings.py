"""Every key of a configuration says what it means: the text is shown beside a mistake in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

SOURCES = sorted((ROOT / "configs").glob("*.py"))


def undocumented(source: str) -> Iterator[str]:
    """`Class.field` of every annotated field without a docstring below it."""
    for kind in ast.walk(ast.parse(source)):
        if not isinstance(kind, ast.ClassDef):
            continue
        for field, below in zip(kind.body, [*kind.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and not is_docstring(below):
                yield f"{kind.name}.{ast.unparse(field.target)}"


def is_docstring(statement: ast.stmt | None) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_field_has_a_docstring(path):
    assert list(undocumented(path.read_text("utf-8"))) == []


def test_a_field_without_one_is_found():
    source = 'class A:\n    a: int\n    """Yes."""\n    b: int = 1\n    c: int = 2\n    "Yes."\n'
    assert list(undocumented(source)) == ["A.b"]
