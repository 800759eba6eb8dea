"""How a judge was asked: one that was asked in two ways is two judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.alpaca.files import read_object
from evaluation.claim import RESULT

Protocol = Mapping[str, Any]
"""All that a judge's verdicts depend on, as `settings.judge` of a result has it."""


def differing(protocols: Sequence[Protocol]) -> list[str]:
    """The settings in which they are not all the same."""
    first, *others = protocols
    return sorted({k for one in others for k in first.keys() | one if first.get(k) != one.get(k)})


def protocol_beside(annotations: Path) -> Protocol | None:
    """How the judge of a file of verdicts was asked, None where no result beside it says so.

    Raises:
        UserError: The result beside it cannot be read.
    """
    path = annotations.with_name(RESULT)
    if not path.is_file():
        return None
    settings = read_object(path, "the rates of AlpacaEval").get("settings")
    found = settings.get("judge") if isinstance(settings, dict) else None
    return found if isinstance(found, dict) else None
