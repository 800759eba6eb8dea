"""The two roles of the one model, told apart by nothing but their prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.chat import ChatEncoder, Message, Plain
from actors.records import TokenIds
from configs.errors import UserError

CHALLENGER_PROMPT = Path(__file__).parent / "prompts" / "challenger.txt"
"""Our challenger prompt, with the slots of `CHALLENGER_SLOTS`."""
CHALLENGER_SLOTS = ("task", "template")
SOLVER_SLOTS = ("query",)


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A prompt with slots, each written `{{name}}`."""

    text: str
    slots: tuple[str, ...]

    @classmethod
    def load(cls, path: Path, slots: Sequence[str]) -> PromptFile:
        """Read a prompt from a file.

        Raises:
            UserError: The file cannot be read, or one of the slots is not in it.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the prompt file {path}: {error}") from error
        for slot in slots:
            if _slot_mark(slot) not in text:
                raise UserError(
                    f"the prompt file {path} lacks the slot {_slot_mark(slot)}: write it where the"
                    f" {slot} belongs"
                )
        return cls(text.strip(), tuple(slots))

    def fill(self, values: Mapping[str, str | Plain]) -> tuple[str | Plain, ...]:
        """Return the prompt as the pieces of a message, every slot replaced by its value."""
        pieces = self._split()
        return tuple(values[part] if place % 2 else part for place, part in enumerate(pieces))

    @property
    def wording(self) -> list[str]:
        """The prompt's own texts: what stands before, between and after its slots."""
        return self._split()[::2]

    def _split(self) -> list[str]:
        """Own text and slot names by turns; a value that looks like a slot is never filled."""
        names = "|".join(map(re.escape, self.slots))
        return re.split(r"\{\{(" + names + r")\}\}", self.text)


BARE_QUERY = PromptFile("{{query}}", SOLVER_SLOTS)
"""The Solver is asked the query and nothing else."""


def solver_file(path: Path | None) -> PromptFile:
    """Return the Solver's prompt; None: the bare query. Raises UserError as `PromptFile.load`."""
    return BARE_QUERY if path is None else PromptFile.load(path, SOLVER_SLOTS)


def challenger_prompt(
    encoder: ChatEncoder, prompt: PromptFile, task: str, template: str
) -> TokenIds:
    """Return the prompt on which the model plays the Challenger, int32 [tokens]."""
    pieces = prompt.fill({"task": task, "template": template})
    return encoder.encode([Message("user", pieces)])


def solver_prompt(
    encoder: ChatEncoder, query: str, system: str = "", prompt: PromptFile = BARE_QUERY
) -> TokenIds:
    """Return the prompt on which the model plays the Solver, int32 [tokens].

    The query is untrusted text, whoever wrote it. An empty `system` means no system message.
    """
    messages = [Message("system", (system,))] if system else []
    return encoder.encode([*messages, Message("user", prompt.fill({"query": Plain(query)}))])


def parse_query(text: str) -> str:
    """Return the query that the Challenger wrote: all of its text but the outer white space."""
    return text.strip()


def _slot_mark(slot: str) -> str:
    return "{{" + slot + "}}"
