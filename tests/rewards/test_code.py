"""The verifier of coding tasks: what tests need, what an answer's code is, and faked successes."""

from functools import cache

import pytest

from configs.errors import UserError
from rewards.code_tests import defines, find_code, read_tests, try_code
from rewards.killable import KillableVerifier
from rewards.sandbox import Limits, Sandbox

ADDS = "assert f(1, 2) == 3\nassert abs(f(2, 2) - 4) < 1e-6\n"


@pytest.fixture
def sandbox(debian_program):
    debian_program("bwrap", "bubblewrap")
    return made()


@cache
def made():
    return Sandbox(Limits(wall_s=10.0, cpu_s=2, memory_mib=256))


def kind(sandbox, code, tests):
    return try_code(sandbox, code, read_tests(tests)).kind


@pytest.mark.parametrize(
    ("tests", "names", "modules"),
    [
        ("assert f(1) == len('a')", ("f",), ()),
        ("assert sum(10, 15) == 6", ("sum",), ()),
        ("assert set(f([1])) == {1}", ("f",), ()),
        ("assert math.isclose(area(1), math.pi)", ("area",), ("math",)),
        ("import math as m\nassert area(1) == m.pi", ("area",), ()),
        ("x = [Pair(1, 2)]\nassert longest(x, 1) == 1", ("Pair", "longest"), ()),
        ("def check(g):\n    assert g(A) == [i for i in B]\ncheck(f)", ("A", "B", "f"), ()),
        ("assert calendar(2) == 1", ("calendar",), ()),
    ],
)
def test_names_that_tests_take_from_a_solution(tests, names, modules):
    read = read_tests(tests)
    assert (read.names, read.modules) == (names, modules)


@pytest.mark.parametrize("tests", ["", "assert 1 == 1", "f(1)", "assert f(1"])
def test_tests_that_test_nothing_are_refused(tests):
    with pytest.raises(ValueError, match=r"assert nothing|not Python"):
        read_tests(tests)


def fenced(*blocks):
    return "So:\n" + "\nand\n".join(f"```python\n{block}\n```" for block in blocks)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("def f(): pass", "def f(): pass"),
        (fenced("def f(): pass"), "def f(): pass\n"),
        (fenced("print(f())", "def f(): pass", "f = 1"), "def f(): pass\n"),
        (fenced("x = 1", "y = 2"), "x = 1\n"),
        ("```\ndef f(): pass", "def f(): pass"),
        ("1. So\n   ```py\n   def f():\n     pass\n   ```\n", "def f():\n  pass\n"),
    ],
)
def test_code_of_an_answer(answer, code):
    assert find_code(answer, ["f"]) == code


def test_what_defines_a_name():
    for code in ("def f(", "async def f(", "class f:", "f = 1", "f: int = 1", "x = 1\nf=g"):
        assert defines(code, "f"), code
    for code in ("  def f(", "def ff(", "f == 1", "g(f)", "# def f("):
        assert not defines(code, "f"), code


HONEST = {
    "plain values": (
        "def same(x): return x",
        "from decimal import Decimal\nfrom fractions import Fraction\n"
        "for x in (None, True, 7, -0.5, 10**5000, 'ü\\ud800', b'\\x00', [1, (2, {3})], {1: 'a'},\n"
        "          1j, range(3), frozenset({1}), bytearray(b'a'), int, Fraction(1, 3),\n"
        "          Decimal('0.1'), float('inf'), {(1, 2): [3]}):\n"
        "    assert same(x) == x and type(same(x)) is type(x), x\n",
    ),
    "subclasses of them": (
        "import collections, enum\n"
        "class Colour(str, enum.Enum):\n    RED = 'red'\n"
        "def count(x): return collections.Counter(x)\n"
        "def colour(): return Colour.RED\n"
        "def pair(): return collections.namedtuple('P', 'a b')(1, 2)\n",
        "assert count('aab') == {'a': 2, 'b': 1}\nassert colour() == 'red' and pair() == (1, 2)",
    ),
    "changes its argument": (
        "def sort(x): x.sort()\ndef clear(d, s): d.clear(); s.add(1)\n",
        "x = [3, 1, 2]\nassert sort(x) is None and x == [1, 2, 3]\n"
        "d, s = {1: 2}, set()\nclear(d, s)\nassert d == {} and s == {1}",
    ),
    "a class": (
        "class Stack:\n"
        "    def __init__(self): self.items = []\n"
        "    def push(self, x): self.items.append(x)\n"
        "    def __len__(self): return len(self.items)\n"
        "    def __getitem__(self, i): return self.items[i]\n"
        "    def __eq__(self, other): return self.items == other.items\n",
        "a, b = Stack(), Stack()\na.push(5)\nassert len(a) == 1 and a[0] == 5 and a.items == [5]\n"
        "assert a != b and a\nb.items = [5]\nassert a == b and list(b) == [5] and not Stack()",
    ),
    "takes a function": (
        "def apply(f, x): return [f(i) for i in x]",
        "seen = []\nassert apply(lambda i: seen.append(i) or i + 1, [1, 2]) == [2, 3]\n"
        "assert seen == [1, 2] and apply(str, [1]) == ['1']",
    ),
    "a generator": (
        "def count():\n    n = 0\n    while True:\n        yield n\n        n += 1\n"
        "def two():\n    yield 1\n    yield 2\n",
        "c = count()\nassert [next(c), next(c)] == [0, 1] and list(two()) == [1, 2]",
    ),
    "raises": (
        "class Odd(ValueError): pass\ndef f(x):\n    if x: raise Odd('odd')\n    return {}[1]",
        "try:\n    f(1)\n    assert False\nexcept ValueError as error:\n"
        "    assert 'odd' in str(error)\n"
        "try:\n    f(0)\n    assert False\nexcept KeyError:\n    pass",
    ),
    "has a name of Python's": ("def sum(a, b): return a - b", "assert sum(3, 1) == 2"),
    "prints": (
        "print('x')\ndef f():\n    print('{\"passed\": false}')\n    return 1",
        "assert f()",
    ),
    "a data class": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n",
        "assert P(1) == P(1) and P(1) != P(2) and P(3).x == 3",
    ),
    "shows how it is used": (
        "def f(): return 1\nif __name__ == '__main__':\n    raise SystemExit(input())",
        "assert f() == 1",
    ),
}


@pytest.mark.parametrize(("code", "tests"), HONEST.values(), ids=HONEST.keys())
def test_honest_code_passes(sandbox, code, tests):
    verdict = try_code(sandbox, code, read_tests(tests))
    assert verdict.kind == "passed", verdict.reason


PEER = """
import gc
peer = next(o for o in gc.get_objects() if type(o).__name__ == "Peer")
"""
"""How a solution gets at its end of the conversation with the tests."""
FAKED = {
    "nothing": ("", "failed"),
    "a wrong function": ("def f(a, b): return 5", "failed"),
    "an end at once": ("import os; os._exit(0)", "failed"),
    "an exit at once": ("import sys; sys.exit(0)", "failed"),
    "an end in the call": ("import os\ndef f(a, b): os._exit(0)", "failed"),
    "an exit in the call": ("def f(a, b): raise SystemExit(0)", "failed"),
    "a verdict of its own on every descriptor": (
        "import os\nfor n in range(64):\n"
        "    try: os.write(n, b'{\"passed\": true}')\n    except OSError: pass\n"
        "os._exit(0)",
        "failed",
    ),
    "an object equal to all": (
        "class All(float):\n"
        "    def __eq__(self, other): return True\n"
        "    def __sub__(self, other): return 0.0\n"
        "def f(a, b): return All(9)",
        "failed",
    ),
    "an object with its own arithmetic": (
        "class All:\n"
        "    def __eq__(self, other): return True\n"
        "    def __sub__(self, other): return 0.0\n"
        "    def __float__(self): return 3.0\n"
        "    __getattr__ = lambda self, name: self\n"
        "def f(a, b): return All()",
        "failed",
    ),
    "replaced built-ins": (
        "import builtins\n"
        "builtins.AssertionError = type('Quiet', (Exception,), {})\n"
        "builtins.abs = lambda x: 0\n"
        "class abs:\n    __new__ = lambda *_: 0\n"
        "def f(a, b): return 9",
        "failed",
    ),
    "a search for the expected values": (
        "import gc, sys\n"
        "def f(a, b):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        if 'tests' in frame.f_globals or 'job' in frame.f_locals: return a + b\n"
        "        frame = frame.f_back\n"
        "    texts = [o for o in gc.get_objects() if isinstance(o, (str, dict, list))]\n"
        "    return a + b if any('assert f(1, 2)' in str(o) for o in texts[:20000]) else 9",
        "failed",
    ),
    "a call into the tests' process": (
        PEER + "def f(a, b):\n"
        "    for ask in (['type', 'type'], ['yours', 0], ['mine', 0]):\n"
        "        peer._send(['ask', 'call', ['list', [ask, ['list', ['Q', ['tuple', [['type',\n"
        "            'object']]], ['dict', [['__eq__', ['type', 'bool']]]]]], ['dict', []]]]])\n"
        "        reply = peer._receive()\n"
        "        if reply[0] == 'result': return a + b\n"
        "    for operation in ('get', 'define', 'name'):\n"
        "        peer._send(['ask', operation, ['list', ['f', '__globals__']]])\n"
        "        if peer._receive()[0] == 'result': return a + b\n",
        "failed",
    ),
    "nonsense in the conversation": (
        PEER + "def f(a, b):\n    peer._stream.write(b'\\xff' * 99)\n    peer._stream.flush()",
        "failed",
    ),
    "a reply that is too long": ("def f(a, b): return 'x' * (20 << 20)", "failed"),
    "the end of the tests' process": (
        "import os, signal\ndef f(a, b): os.kill(os.getppid(), signal.SIGKILL)",
        "crashed",
    ),
    "an interrupt for the tests": (
        "import os\ndef f(a, b):\n    os.kill(os.getppid(), 2)\n    return a + b",
        "failed",
    ),
    "an endless loop": ("def f(a, b):\n    while True: pass", "timeout"),
    "memory without end": ("def f(a, b): return [0] * 10**9", "memory"),
    "a crash": ("import ctypes\ndef f(a, b): ctypes.string_at(0)", "crashed"),
}


@pytest.mark.parametrize(("code", "expected"), FAKED.values(), ids=FAKED.keys())
def test_faked_success_does_not_count(sandbox, code, expected):
    assert kind(sandbox, "def f(a, b): return a + b", ADDS) == "passed"
    for line in ADDS.splitlines():
        assert kind(sandbox, code, line) == expected


STOPS = {
    "a call": ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))"),
    "an item": (
        "class f:\n    def __init__(self, x): pass\n"
        "    def __getitem__(self, key): raise StopIteration",
        "assert all(map(f(1).__getitem__, [1, 2]))",
    ),
    "an attribute": (
        "class f:\n    def __init__(self, x): pass\n"
        "    def __getattr__(self, name): raise StopIteration",
        "assert all(map(lambda x: f(x).right, [1, 2]))",
    ),
}


@pytest.mark.parametrize(("code", "tests"), STOPS.values(), ids=STOPS.keys())
def test_a_solution_does_not_end_the_tests_own_loops(sandbox, code, tests):
    verdict = try_code(sandbox, code, read_tests(tests))
    assert (verdict.kind, "RuntimeError: StopIteration" in verdict.reason) == ("failed", True)


def test_the_end_of_a_solutions_iterator_is_one(sandbox):
    code = "def two(): yield from (1, 2)"
    tests = "t = two()\nassert [next(t), next(t), next(t, 3)] == [1, 2, 3]"
    assert kind(sandbox, code, tests) == "passed"


def test_reason_names_the_line(sandbox):
    verdict = try_code(sandbox, "def f(a, b): return 3", read_tests(ADDS))
    assert "assert abs(f(2, 2) - 4) < 1e-6" in verdict.reason


@pytest.fixture
def verifier(debian_program):
    debian_program("bwrap", "bubblewrap")
    verifier = KillableVerifier("rewards.code:tests_pass", 30.0, "rewards.parts.tests.function")
    yield verifier
    verifier.close()


def test_verifier_scores_answers(verifier):
    answers = [
        fenced("def f(a, b): return a + b"),
        fenced("def f(a, b): return a - b"),
        "I do not know.",
        fenced("import sys; sys.exit(0)"),
        fenced("def f(a, b):\n    while True: pass"),
    ]
    outcomes = verifier.verify([("", answer, ADDS) for answer in answers])
    assert [(o.kind, o.score) for o in outcomes] == [
        ("scored", score) for score in (1.0, 0.0, 0.0, 0.0, 0.0)
    ]
    without, empty = verifier.verify([("", answers[0], None), ("", answers[0], "assert 1")])
    assert (without.kind, empty.kind) == ("raised", "raised")


def test_verifier_without_a_sandbox_is_the_users_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"rewards\.parts\.tests\.function.*install bubblewrap"):
        KillableVerifier("rewards.code:tests_pass", 30.0, "rewards.parts.tests.function")
