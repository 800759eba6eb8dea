"""A folder holds one evaluation: another one is refused, not written over it.

RUN/evaluation/math-7 may be asked for again with other weights (after a rollback), other settings
or fewer problems; folders of models may have one name. evaluation.json says whose the folder is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from evaluation.alpaca.files import read_object, write_json

CLAIM, RESULT = "evaluation.json", "result.json"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note whose the folder is: all that tells this evaluation from others, as JSON.

    Raises:
        UserError: It holds the result of another one.
    """
    path = folder / CLAIM
    if (folder / RESULT).is_file():
        found = read_object(path, "the settings of an evaluation") if path.is_file() else {}
        different = [key for key in settings if found.get(key) != settings[key]]
        if different:
            raise UserError(
                f"{folder} holds another evaluation, with another value of {', '.join(different)}:"
                " name another folder (--out), or remove this one"
            )
    write_json(path, dict(settings))
