"""Rows of a benchmark's data set, from a local file or the hub, with errors that name the place."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HubData:
    """A split of a data set on the hub."""

    name: str
    config: str | None = None
    split: str = "test"


def load_rows(path: Path | None, hub: HubData, fields: Sequence[str]) -> list[tuple[str, Row]]:
    """Return (where it stands, row) for all rows, each with these fields.

    Args:
        path: A JSON-lines file, also .gz; None: the hub.
        hub: Where the rows are otherwise.
        fields: What a row must have.

    Raises:
        UserError: The file or the hub cannot be read, or holds something else.
    """
    rows = list(json_lines(path) if path is not None else _of_hub(hub))
    for place, row in rows:
        missing = [name for name in fields if name not in row]
        if missing:
            raise UserError(f"{place} has no field {missing[0]!r}; it has {sorted(row)}")
    if not rows:
        raise UserError(f"{path or hub.name} holds no rows")
    return rows


def json_lines(path: Path, key: str = "") -> Iterator[tuple[str, Row]]:
    """Yield (where it stands, row) for all rows of a JSON-lines file, also .gz.

    Raises UserError as `read_text` does, and with the number of the line that is no JSON object.
    """
    # Not splitlines(): a text may hold other line separators than "\n".
    for number, line in enumerate(read_text(path, key).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object")
        yield f"{path} line {number}", row


def read_text(path: Path, key: str = "") -> str:
    """Return a file's text, unpacked where it is .gz.

    Args:
        path: The file.
        key: The key of the configuration that names it, for the message; "": there is none.

    Raises:
        UserError: It cannot be read, unpacked or decoded.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{key} {path} cannot be read: {error}".lstrip()) from error


def _of_hub(hub: HubData) -> Iterator[tuple[str, Row]]:
    from datasets import load_dataset  # noqa: PLC0415 — seconds
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        rows = load_dataset(hub.name, hub.config, split=hub.split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{hub.name} cannot be had from the hub: {reason}; name a local file of its rows"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{hub.name} row {number}", dict(row)
