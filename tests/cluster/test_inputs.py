"""The held-out problems are made before the model is: what is wrong with them costs seconds."""

from __future__ import annotations

import pytest

from cluster.inputs import check_inputs
from configs.errors import UserError
from configs.load import load
from tests.conftest import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
MODULE = """
from collections import namedtuple
Problem = namedtuple("Problem", "text family")
def ten(n): return [Problem("a", "b")] * min(n, 10)
def raises(n): return {}["gone"]
def bare(n): return ["a"] * n
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Check the quickstart with a function of the module above, and so many problems."""
    (tmp_path / "made_problems.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def check(function: str, n: int) -> None:
        check_inputs(load(QUICKSTART, [f"heldout.problems={function}", f"heldout.n={n}"]))

    return check


def test_problems_that_are_there_are_no_mistake(check):
    check("made_problems:ten", 10)


@pytest.mark.parametrize(
    ("function", "n", "said"),
    [
        ("made_problems:ten", 11, r"gives 10 problems where heldout\.n asks for 11: lower heldo"),
        ("made_problems:raises", 5, r"gives no 5 problems, .*KeyError: 'gone'\): lower heldout\.n"),
        (
            "made_problems:bare",
            5,
            r"gives no 5 problems, each with a text and a family \(AttributeError: ",
        ),
    ],
)
def test_problems_that_are_not_there_are_a_sentence(check, function, n, said):
    with pytest.raises(UserError, match=rf"heldout\.problems '{function}' {said}"):
        check(function, n)
