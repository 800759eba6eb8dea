"""Which answers look like code: a cheap rule, to see a Solver drift into answering in programs.

An answer looks like code where it has a fenced block that is not marked as text or maths, or
where more than half of its lines are lines of a program. Such a line has a form that prose, lists
and formulas do not take, in Python, JavaScript, C, C++, Java, Go, Rust, SQL, HTML and their kin;
or it is indented and comes after such a line. A plain `x = 5` has no such form: a solution in
maths has such lines too. Lines without a letter or digit are not counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_FENCE = re.compile(r"^[ \t]*+(?:`{3,}+|~{3,}+)[ \t]*+([^\s`]*+)[^`\n]*+$", re.MULTILINE)
_NO_CODE = {"text", "txt", "plain", "plaintext", "markdown", "md", "math", "latex", "tex", "output"}
"""Languages of a fenced block that make no code of it."""

_METHOD = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+\(.*\)"
_NAME = r"[A-Za-z_$][\w.\[\]]*"
_TAGS = (
    r"html|head|body|div|span|script|style|title|p|a|ul|ol|li|table|tr|td|th|h[1-6]|img|br|input"
    r"|form|button|meta|link"
)
_FORMS = (
    # Python: what opens a block, and imports.
    r"(?:async )?def \w+\(.*|class \w+(?:\(.*\))?:",
    r"for .+ in .+:|with .+\(.*:|(?:if|elif|while) (?:not \w+|True|.*[=<>(\[].*):",
    r"(?:else|try|finally|except(?: \w+(?: as \w+)?)?):",
    r"import [\w.*\"]+(?: as \w+)?;?|from [\w.]+ import .+",
    # C and its kin: what ends in an opening brace, and statements that end in a semicolon.
    r"[^\\]*[\w)>] ?\{",
    rf"(?:\w+ ){{0,3}}{_NAME}[\w\]] ?[-+*/]?= .*;|.*[\w!]\(.*\);",
    r"(?:return|break|continue|throw|using|package|namespace)\b.*;|(?:const|var) \w+ = .+",
    r"//.*|/\*.*|#!/.*|#(?:include|define|ifdef|ifndef|endif|pragma)\b.*",
    # Printing, a method called or its result assigned, an assignment in place.
    rf"print\(.*\)|echo [\"'$].*|(?:[\w, ]+ = (?:await )?)?{_METHOD}",
    rf"{_NAME} ?(?:[-+*/%]|\*\*|//)= ?\S.*",
    # SQL and HTML.
    r"(?:SELECT|FROM|WHERE|(?:LEFT |INNER )?JOIN|(?:ORDER|GROUP) BY|INSERT INTO|CREATE TABLE) .+",
    rf"</?(?:{_TAGS})(?: [^<>]*)?>.*|<!DOCTYPE .*",
)
_PROGRAM = re.compile("|".join(_FORMS))
_LONGEST = 200
"""Characters; a longer line is taken for prose, which bounds the cost of matching."""


def code_share(texts: Sequence[str]) -> float:
    """Return the share of the texts that look like code, NaN where there is no text."""
    return sum(map(looks_like_code, texts)) / len(texts) if texts else math.nan


def looks_like_code(text: str) -> bool:
    """Whether a text looks like code, by the rule of this module."""
    return _has_code_block(text) or _is_program(text)


def _has_code_block(text: str) -> bool:
    """Whether the text has a fenced block of code; an answer that was cut may lack its end."""
    opening = _FENCE.findall(text)[::2]  # every second fence closes a block
    return any(language.lower() not in _NO_CODE for language in opening)


def _is_program(text: str) -> bool:
    lines = [line for line in text.splitlines() if re.search(r"\w", line)]
    found = 0
    above = False  # whether the line before is one of a program
    for line in lines:
        bare = line.strip()
        above = (above and line[0].isspace()) or _has_form_of_program(bare)
        found += above
    return 2 * found > len(lines)


def _has_form_of_program(line: str) -> bool:
    return len(line) <= _LONGEST and _PROGRAM.fullmatch(line) is not None
