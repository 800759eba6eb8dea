"""Functions that a configuration names: whatever their module does, the user gets a sentence."""

from __future__ import annotations

import pytest

from configs.errors import UserError
from configs.functions import resolve

BROKEN = {
    "NameError": "print(nowhere)",
    "ValueError": "raise ValueError('no such setting')",
    "ImportError": "import no_such_module_anywhere",
    "SyntaxError": "def (",
}


@pytest.mark.parametrize(("kind", "text"), BROKEN.items(), ids=BROKEN.keys())
def test_a_module_that_raises_is_a_sentence_with_its_cause(tmp_path, monkeypatch, kind, text):
    module = f"raises_{kind.lower()}"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=rf"gate\.x '{module}:f' cannot be imported") as caught:
        resolve("gate.x", f"{module}:f")
    cause = caught.value.__cause__
    assert kind in [base.__name__ for base in type(cause).__mro__]


def test_a_function_is_found_and_another_thing_refused():
    assert resolve("gate.x", "os.path:join")("a", "b") == "a/b"
    with pytest.raises(UserError, match=r"gate\.x 'os:sep' is a str, not a function"):
        resolve("gate.x", "os:sep")
