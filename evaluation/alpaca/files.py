"""JSON files of AlpacaEval: read with a clear sentence where they are wrong, written whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError, naming

Row = dict[str, Any]


def read_text(path: Path, what: str) -> str:
    """The text of a file. Raises UserError, which says what the file was to hold."""
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; it should hold {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as {what}: {error}") from None


def read_items(path: Path, what: str) -> list[Any]:
    """The items of a JSON list, of JSON lines, or of the columns that pandas writes by default.

    Items are returned as they are: what is no object is for the caller to count.

    Raises:
        UserError: There is no such file, or it is none of the three.
    """
    text = read_text(path, what)
    try:
        data = json.loads(text)
    except ValueError as whole:  # a number of thousands of digits is no JSONDecodeError
        data = _json_lines(text)
        if data is None:
            raise UserError(f"{path}: is no JSON, and should hold {what}: {whole}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply to hold {what}") from None
    rows = _rows(data)
    if rows is None:
        raise UserError(f"{path}: should hold {what}, a JSON list of objects")
    return rows


def _json_lines(text: str) -> list[Any] | None:
    """The objects of a file with one on each line, None where it is not one."""
    try:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return None
    return rows if rows and all(isinstance(row, dict) for row in rows) else None


def _rows(data: Any) -> list[Any] | None:
    if isinstance(data, list):
        return data
    if isinstance(data, dict) and data and all(isinstance(c, dict) for c in data.values()):
        keys = list(dict.fromkeys(key for column in data.values() for key in column))
        return [{name: column.get(key) for name, column in data.items()} for key in keys]
    return [data] if isinstance(data, dict) and "instruction" in data else None


def sound(text: str) -> str:
    """The text without halves of characters (lone surrogates), which no file and no request takes.

    JSON can spell them; each becomes a question mark.
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def read_object(path: Path, what: str) -> Row:
    """The one JSON object of a file. Raises UserError where it holds no such."""
    try:
        value = json.loads(read_text(path, what))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path}: should hold {what}, a JSON object")
    return value


def write_json(path: Path, value: Row | Sequence[Row]) -> None:
    """Write it beside and rename, so that a reader never sees half of it."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(f"{text}\n", "utf-8")
        unfinished.replace(path)
