"""The instructions that models answer, each with the subset it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from evaluation.alpaca import hub
from evaluation.alpaca.files import read_items, sound

SUBSETS = ("selfinstruct", "oasst", "koala", "helpful_base", "vicuna")
"""AlpacaEval's own, in the order of tables and charts; others follow them."""
FORM = 'instructions, objects with "instruction" and "dataset"'


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; `subset` is "" where the file says none."""

    text: str
    subset: str


def load_instructions(path: Path | None) -> list[Instruction]:
    """The instructions of a local file, or AlpacaEval's 805 from the hub.

    Raises:
        UserError: The file is none, says an instruction twice, or the hub cannot be reached.
    """
    try:
        source = path or hub.fetch(hub.INSTRUCTIONS)
    except hub.UnreachableError as error:
        raise UserError(f"{error}; name a local file of the instructions") from None
    return _instructions(source)


def _instructions(path: Path) -> list[Instruction]:
    found = []
    for place, row in enumerate(read_items(path, FORM)):
        text = row.get("instruction") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text:
            raise UserError(f'{path}: item {place} has no "instruction"; the file holds {FORM}')
        subset = row.get("dataset")
        found.append(Instruction(sound(text), subset if isinstance(subset, str) else ""))
    texts = {instruction.text for instruction in found}
    if not found or len(texts) < len(found):
        fault = f"says {len(found) - len(texts)} instructions twice" if found else "is empty"
        raise UserError(f"{path}: {fault}; answers are joined by the instruction's text")
    return found


def first_of_each(instructions: Sequence[Instruction], limit: int | None) -> list[Instruction]:
    """At most `limit` of them, in their order: the first of each subset, by turns."""
    seen: Counter[str] = Counter()
    turns = []
    for instruction in instructions:
        turns.append(seen[instruction.subset])
        seen[instruction.subset] += 1
    chosen = sorted(range(len(instructions)), key=turns.__getitem__)[:limit]
    return [instructions[place] for place in sorted(chosen)]


def ordered(subsets: Sequence[str]) -> list[str]:
    """The names once each: AlpacaEval's in its order, others after them by name."""
    known = [name for name in SUBSETS if name in subsets]
    return known + sorted(set(subsets) - set(known) - {""})
