"""Verdicts as AlpacaEval writes them, read one by one and counted where they cannot be used.

A preference is 1 where the reference is preferred, 2 where the evaluated model is, 1.5 (or a
legacy 0) for a draw; values between are soft. Anything else is no verdict: it is left out of
every rate, and the reason is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.errors import UserError
from evaluation.alpaca.files import Row, read_items

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

FORM = 'verdicts in AlpacaEval\'s form, objects with "instruction" and "preference"'
DRAW = 1.5


@dataclass(frozen=True, eq=False)
class Verdicts:
    """The n rows of a file, in its order; NaN, None or "" where a row does not say.

    `preference_n` is in [1, 2], or NaN where the row was dropped; lengths are in characters;
    `dropped` counts the reasons; `notes` are sentences on what is odd in the file.
    """

    preference_n: Floats
    instruction_n: tuple[str | None, ...]
    subset_n: tuple[str, ...]
    length_1_n: Floats
    length_2_n: Floats
    reference: str | None
    model: str | None
    judge: str | None
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def kept_n(self) -> Booleans:
        """Which rows count."""
        return ~np.isnan(self.preference_n)

    def with_subsets(self, subset_of: Mapping[str, str]) -> Verdicts:
        """The same, with subsets looked up by instruction where rows say none."""
        pairs = zip(self.subset_n, self.instruction_n, strict=True)
        return replace(self, subset_n=tuple(s or subset_of.get(i or "", "") for s, i in pairs))


def read_verdicts(path: Path, generator: str | None = None) -> Verdicts:
    """The verdicts of a file on one evaluated model.

    Args:
        path: The file.
        generator: The evaluated model, where the file holds several.

    Raises:
        UserError: The file cannot be read, holds several models, or has no usable verdict.
    """
    rows = read_items(path, FORM)
    named = [name for row in rows if isinstance(row, dict) and (name := _text(row, "generator_2"))]
    models = Counter(named)
    if generator is not None:
        rows = [r for r in rows if isinstance(r, dict) and r.get("generator_2") == generator]
        if not rows:
            raise UserError(f"{path}: has no verdict on {generator!r}, only on {_listed(models)}")
    elif len(models) > 1:
        raise UserError(
            f"{path}: holds verdicts on several models, {_listed(models)}: name one as generator"
        )
    verdicts = verdicts_of(rows)
    if not verdicts.kept_n.any():
        raise UserError(
            f"{path}: has no usable verdict in {len(rows)} items"
            f" ({counted(verdicts.dropped) or 'it is empty'}); it should hold {FORM}"
        )
    return verdicts


def verdicts_of(items: Sequence[Any]) -> Verdicts:
    """The verdicts of items as they stand in a file; what is no object is dropped and counted."""
    rows: list[Row] = [item if isinstance(item, dict) else {} for item in items]
    preferences: list[float] = []
    dropped: Counter[str] = Counter()
    for item in items:
        value, reason = preference_of(item)
        preferences.append(value)
        if reason:
            dropped[reason] += 1
    return Verdicts(
        preference_n=np.array(preferences, np.float64),
        instruction_n=tuple(_text(row, "instruction") for row in rows),
        subset_n=tuple(_text(row, "dataset") or "" for row in rows),
        length_1_n=np.array([_length(row, "output_1") for row in rows], np.float64),
        length_2_n=np.array([_length(row, "output_2") for row in rows], np.float64),
        reference=_only(rows, "generator_1"),
        model=_only(rows, "generator_2"),
        judge=_only(rows, "annotator"),
        dropped=dict(dropped),
        notes=_notes(rows),
    )


def preference_of(item: Any) -> tuple[float, str | None]:
    """The preference in [1, 2] of one row, or NaN and the reason why it does not count."""
    if not isinstance(item, dict):
        return math.nan, "not_an_object"
    value = item.get("preference")
    if value is None:
        return math.nan, "refused" if _text(item, "refusal") else "missing"
    number = _number(value)
    if number is None:
        return math.nan, "not_a_number"
    if math.isnan(number):
        return math.nan, "missing"
    if number == 0:
        return DRAW, None
    return (number, None) if 1 <= number <= 2 else (math.nan, "outside_1_to_2")


def _number(value: Any) -> float | None:
    """A number, or the one that a text is: some exports write numbers as texts."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def _text(row: Row, key: str) -> str | None:
    value = row.get(key)
    return value if isinstance(value, str) and value else None


def _only(rows: Sequence[Row], key: str) -> str | None:
    """The one value that all rows have which have any; None where they differ."""
    names = {row[key] for row in rows if _text(row, key)}
    return names.pop() if len(names) == 1 else None


def _length(row: Row, key: str) -> float:
    """Characters of an output: of its text, or as `len_output_1` says where texts were removed."""
    value = row.get(key)
    if isinstance(value, str):
        return float(len(value))
    length = _number(row.get(f"len_{key}"))
    return length if length is not None and 0 <= length < 1e9 else math.nan


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Sentences on what a reader of the rates should know of the rows."""
    notes = []
    texts = [text for row in rows if (text := _text(row, "instruction"))]
    twice = len(texts) - len(set(texts))
    if twice:
        notes.append(f"{twice} rows repeat an instruction; each row counts, as in AlpacaEval")
    references = {row["generator_1"] for row in rows if _text(row, "generator_1")}
    if len(references) > 1:
        notes.append(f"the rows have {len(references)} different references: {sorted(references)}")
    return tuple(notes)


def _listed(models: Counter[str]) -> str:
    shown = [f"{name} ({count})" for name, count in models.most_common(10)]
    more = [f"and {len(models) - len(shown)} more"] if len(models) > len(shown) else []
    return ", ".join(shown + more)


def counted(dropped: Mapping[str, int]) -> str:
    """The reasons why rows do not count, as text."""
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items())
