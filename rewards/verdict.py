"""The judge's two texts, pure: the rubric around a pair, and the verdict read off its output.

Both judged texts are written by the model in training, which earns by what the verdict says. So
neither can leave its pair of tags in the prompt, and only one exact form counts as a verdict.
"""

from __future__ import annotations

import re
from pathlib import Path

from actors.chat import Message, Plain
from actors.roles import PromptFile
from configs.errors import UserError

QUALITY_PROMPT = Path(__file__).parent / "prompts" / "quality.txt"
"""Our rubric, with the slots of `QUALITY_SLOTS`."""
QUALITY_SLOTS = ("instruction", "response")

# `[0-9]` and not `\d`, which takes other scripts' digits too.
_VERDICT = re.compile(
    r"<calculation>\s*(?P<terms>[01](?:\s*\+\s*[01]){6})\s*=\s*(?P<sum>[0-7])\s*</calculation>"
    r".*<score>\s*(?P<score>[0-7])\s*</score>\s*\Z",
    re.DOTALL,
)
_ANY_TAG = re.compile(r"<\s*(?:/\s*)?(calculation|score)\b", re.IGNORECASE)


def parse_verdict(text: str) -> int | None:
    """Return the score 0..7 of a verdict, or None where it is not exactly one.

    One calculation tag with seven terms of 0 or 1 and their true sum, then one score tag with the
    same number, then nothing but white space. White space between the symbols is free. A second
    tag of either kind, in whatever spelling, makes the verdict ambiguous.
    """
    tags = [match.group(1).lower() for match in _ANY_TAG.finditer(text)]
    match = _VERDICT.search(text)
    if match is None or tags != ["calculation", "calculation", "score", "score"]:
        return None
    total = sum(term == "1" for term in match["terms"])
    return total if int(match["sum"]) == int(match["score"]) == total else None


class QualityPrompt:
    """The rubric around a query and an answer."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the rubric; None is ours.

        Raises:
            UserError: The file cannot be read, a slot is missing, or a slot is not in a pair of
                tags of its own.
        """
        path = path or QUALITY_PROMPT
        self._file = PromptFile.load(path, QUALITY_SLOTS)
        self._tags = [_enclosing_tag(self._file.text, slot, path) for slot in QUALITY_SLOTS]
        names = "|".join(map(re.escape, self._tags))
        self._closing = re.compile(rf"<(?=\s*/\s*(?:{names})\b)", re.IGNORECASE)

    def messages(self, instruction: str, response: str) -> list[Message]:
        """Return the chat that asks for the verdict, both texts plain and held in their tags."""
        texts = {"instruction": instruction, "response": response}
        pieces = self._file.fill({slot: Plain(self.held_in(t)) for slot, t in texts.items()})
        return [Message("user", pieces)]

    def held_in(self, text: str) -> str:
        """Return the text with every closing tag of the two pairs broken.

        Its `<` becomes the look-alike `‹`; a judge reads on what was meant, and no tag is closed.
        Nothing else is touched: the judge is to see what was written.
        """
        return self._closing.sub("‹", text)


def _enclosing_tag(text: str, slot: str, path: Path) -> str:
    """Return the name of the tags around every occurrence of a slot."""
    mark = re.escape("{{" + slot + "}}")
    names = re.findall(rf"<(\w+)>\s*{mark}\s*</\1>", text)
    if len(set(names)) != 1 or len(names) != len(re.findall(mark, text)):
        raise UserError(
            f"the prompt file {path} must hold {{{{{slot}}}}} in a pair of tags, as in"
            f" <{slot}>{{{{{slot}}}}}</{slot}>: the text there is untrusted"
        )
    return names[0]
