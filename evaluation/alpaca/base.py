"""Verdicts on the base, against which a model's are set: of the same judge, on the same reference.

The same judge is one that was asked in the same way, as far as the results beside verdicts say. Of
others the difference would say nothing, with a narrow interval.
"""

from __future__ import annotations

import math
from pathlib import Path

from configs.errors import UserError
from evaluation.alpaca.protocol import Protocol, differing, protocol_beside
from evaluation.alpaca.verdicts import Verdicts, read_verdicts

_REMEDY = "name verdicts on the base by the same judge against the same reference, or leave it out"


def read_base(
    path: Path | None, judge: str | None, reference: str | None, protocol: Protocol | None
) -> Verdicts | None:
    """The verdicts of `base_annotations`, where it names a file.

    `judge`, `reference` and `protocol` are those of the verdicts on the model, None where unknown.

    Raises:
        UserError: The file cannot be used, or is of another judge or reference.
    """
    if path is None:
        return None
    base = read_verdicts(path)
    pairs = {"judge": (base.judge, judge), "reference": (base.reference, reference)}
    for role, (theirs, mine) in pairs.items():
        if theirs != mine:
            raise UserError(
                f"base_annotations: the {role} of {path} is {_name(theirs)}, and of the verdicts on"
                f" the model {_name(mine)}: {_REMEDY}"
            )
    asked = protocol_beside(path)
    if asked is not None and protocol is not None and (keys := differing([asked, protocol])):
        raise UserError(
            f"base_annotations: the judge of {path} is another one than that of the verdicts on the"
            f" model, by its {', '.join(keys)}: {_REMEDY}"
        )
    return base


def refuse_another_reference(base: Verdicts, verdicts: Verdicts) -> None:
    """Raise UserError where the references' outputs differ, whatever their names are."""
    theirs, mine = _lengths(base), _lengths(verdicts)
    differ = sum(mine[text] != theirs[text] for text in mine.keys() & theirs.keys())
    if differ:
        raise UserError(
            f"base_annotations: on {differ} instructions the base was compared with another output"
            f" of {_name(base.reference)} than the model: {_REMEDY}"
        )


def _lengths(verdicts: Verdicts) -> dict[str, float]:
    """Characters of the reference's output by instruction, where both are known."""
    pairs = zip(verdicts.instruction_n, verdicts.length_1_n, strict=True)
    return {text: length for text, length in pairs if text and not math.isnan(length)}


def _name(name: str | None) -> str:
    return "not named, or several" if name is None else repr(name)
