"""AlpacaEval's `model_outputs.json`: answers written, read, and joined by their instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import UserError
from evaluation.alpaca.files import Row, read_items, sound, write_json
from evaluation.alpaca.instructions import Instruction

FORM = 'answers in AlpacaEval\'s form, objects with "instruction" and "output"'


@dataclass(frozen=True)
class Outputs:
    """One model's answers by instruction, and what was wrong with the file they come from.

    `endings` as `evaluation.asking.endings` counts them; a file does not say.
    """

    generator: str
    answers: dict[str, str]
    n_doubled: int = 0
    n_unusable: int = 0
    endings: dict[str, int] = field(default_factory=dict)

    @property
    def order(self) -> list[str]:
        """The instructions as the file has them."""
        return list(self.answers)


@dataclass(frozen=True, slots=True)
class Pair:
    """What the judge compares: output 1 is the reference's, output 2 the evaluated model's."""

    instruction: Instruction
    output_1: str
    output_2: str

    @property
    def identical(self) -> bool:
        """Whether there is nothing to judge: a draw, as in AlpacaEval."""
        return self.output_1 == self.output_2


@dataclass(frozen=True)
class Joined:
    """The pairs in the instructions' order, what could not be paired, and sentences on it."""

    pairs: list[Pair]
    counts: dict[str, int]
    notes: list[str]


def write_outputs(path: Path, outputs: Outputs, instructions: Sequence[Instruction]) -> None:
    """Write `model_outputs.json`, in the order of the instructions."""
    rows: list[Row] = [
        {
            "dataset": instruction.subset,
            "instruction": instruction.text,
            "output": outputs.answers[instruction.text],
            "generator": outputs.generator,
        }
        for instruction in instructions
        if instruction.text in outputs.answers
    ]
    write_json(path, rows)


def read_outputs(path: Path) -> Outputs:
    """The answers of a file; of two to the same instruction the first counts.

    Raises:
        UserError: The file cannot be read, or holds no answer.
    """
    answers: dict[str, str] = {}
    names: set[str] = set()
    n_doubled = n_unusable = 0
    for row in read_items(path, FORM):
        found = _answer(row)
        if found is None:
            n_unusable += 1
        elif found[0] in answers:
            n_doubled += 1
        else:
            answers[found[0]] = found[1]
            names |= {name for name in [row.get("generator")] if isinstance(name, str) and name}
    if not answers:
        raise UserError(f"{path}: holds no answer; it should hold {FORM}")
    if len(names) > 1:
        raise UserError(
            f"{path}: holds answers of several models, {', '.join(sorted(names)[:5])}: split it"
        )
    return Outputs(names.pop() if names else path.stem, answers, n_doubled, n_unusable)


def _answer(row: Any) -> tuple[str, str] | None:
    """(instruction, output) of a row, None where it lacks either; an output may be empty."""
    if not isinstance(row, dict):
        return None
    instruction, output = row.get("instruction"), row.get("output")
    if not isinstance(instruction, str) or not instruction or not isinstance(output, str):
        return None
    return sound(instruction), sound(output)


def join(reference: Outputs, model: Outputs, instructions: Sequence[Instruction]) -> Joined:
    """Pair the two models' answers by instruction; what is missing is left out and said.

    Raises:
        UserError: Not one instruction has both answers.
    """
    pairs = [
        Pair(instruction, reference.answers[instruction.text], model.answers[instruction.text])
        for instruction in instructions
        if instruction.text in reference.answers and instruction.text in model.answers
    ]
    counts = {"n_instructions": len(instructions), "n_pairs": len(pairs)}
    notes = []
    for side, outputs in (("reference", reference), ("model", model)):
        found = _faults(outputs, instructions)
        counts |= {f"{fault}_{side}": count for fault, count in found.items()}
        notes += [_sentence(f, c, outputs, instructions) for f, c in found.items() if c]
    if not pairs:
        raise UserError(
            f"no instruction has an answer of {model.generator!r} and one of"
            f" {reference.generator!r}: both files must answer the instructions that are evaluated"
        )
    return Joined(pairs, counts, notes)


def _faults(outputs: Outputs, instructions: Sequence[Instruction]) -> dict[str, int]:
    texts = [instruction.text for instruction in instructions]
    wanted = set(texts)
    strangers = sum(text not in wanted for text in outputs.answers)
    shared = [text for text in outputs.order if text in wanted]
    return {
        "n_missing": len(wanted) - len(shared),
        "n_doubled": outputs.n_doubled,
        "n_unusable": outputs.n_unusable,
        "n_not_evaluated": strangers,
        "reordered": shared != [text for text in texts if text in outputs.answers],
        **outputs.endings,
    }


def _sentence(fault: str, count: int, outputs: Outputs, instructions: Sequence[Instruction]) -> str:
    """What one fault means for the comparison."""
    name = repr(outputs.generator)
    match fault:
        case "n_missing":
            texts = (i.text for i in instructions if i.text not in outputs.answers)
            first = next(texts).replace("\n", " ")[:60]
            return f"{name} lacks {count} of {len(instructions)} answers, the first to {first!r}"
        case "n_doubled":
            return f"{name} answers {count} times where it has answered: the first answer counts"
        case "n_unusable":
            return f"{count} items of {name} hold no instruction with a text for its output"
        case "n_not_evaluated":
            return f"{count} answers of {name} are to instructions that are not evaluated"
        case "n_cut":
            return f"{count} answers of {name} were cut by answers.max_tokens or rollout.context"
        case "n_no_room":
            return (
                f"{count} prompts leave {name} no room for an answer in rollout.context: they were"
                " not asked"
            )
        case _:
            return f"the answers of {name} are in another order: joined by instruction"
