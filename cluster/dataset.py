"""Queries out of a file or the hub: read, checked row by row, with errors that name the row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import UserError
from configs.schema import DatasetConfig


@dataclass(frozen=True, slots=True)
class Row:
    """A query and, where the configuration names its field, the reference answer."""

    query: str
    reference: str | None


def load_rows(config: DatasetConfig) -> list[Row]:
    """All rows of a JSONL or Parquet file or of a hub data set's split.

    Raises UserError where it is missing, empty or malformed, with the number of the bad line.
    """
    path = Path(config.path)
    if not is_file(config):
        numbered = _hub(config)
    elif path.suffix == ".jsonl":
        numbered = _jsonl(path)
    elif path.suffix == ".parquet":
        numbered = _parquet(path, config)
    else:
        raise UserError(f"source.dataset.path {path} is neither a .jsonl nor a .parquet file")
    rows = [_row(config, place, fields) for place, fields in numbered]
    if not rows:
        raise UserError(f"source.dataset.path {config.path} holds no rows")
    return rows


def is_file(config: DatasetConfig) -> bool:
    """Whether `path` means a file, there or not, and no hub data set."""
    path = Path(config.path)
    return path.suffix in (".jsonl", ".parquet") or path.exists()


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        # Not splitlines(): a text may hold other line separators than "\n".
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"source.dataset.path {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise UserError(f"{path} line {number} is not a JSON object")
        yield f"{path} line {number}", fields


def _parquet(path: Path, config: DatasetConfig) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        file = pq.ParquetFile(path)
        present = [name for name in _fields(config) if name in file.schema_arrow.names]
        rows = file.read(columns=present).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"source.dataset.path {path} cannot be read: {error}") from error
    return ((f"{path} row {number}", row) for number, row in enumerate(rows, start=1))


def _hub(config: DatasetConfig) -> Iterable[tuple[str, Mapping[str, Any]]]:
    # Seconds to import, and most runs need no hub.
    from datasets import load_dataset  # noqa: PLC0415
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        rows = load_dataset(config.path, split=config.split)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"source.dataset.path {config.path!r} is no file here, and as a hub data set with split"
            f" {config.split!r} it cannot be loaded: {_first_line(error)}"
        ) from error
    place = f"{config.path}[{config.split}] row"
    return ((f"{place} {number}", row) for number, row in enumerate(_dicts(rows), start=1))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _dicts(rows: Iterable[Any]) -> Iterator[dict[str, Any]]:
    return (dict(row) for row in rows)


def _fields(config: DatasetConfig) -> list[str]:
    named = (config.query_field, config.context_field, config.reference_field)
    return [name for name in named if name is not None]


def _row(config: DatasetConfig, place: str, fields: Mapping[str, Any]) -> Row:
    for name in _fields(config):
        if name not in fields:
            raise UserError(f"{place} has no field {name!r}; it has {sorted(fields)}")
    query = fields[config.query_field]
    if not isinstance(query, str) or not query.strip():
        raise UserError(f"{place}: field {config.query_field!r} is not a text")
    query += _context(config, place, fields)
    if config.reference_field is None:
        return Row(query, None)
    reference = fields[config.reference_field]
    if not isinstance(reference, str | int | float):
        raise UserError(f"{place}: field {config.reference_field!r} is neither a text nor a number")
    return Row(query, str(reference))


def _context(config: DatasetConfig, place: str, fields: Mapping[str, Any]) -> str:
    """What follows the query of a row: a blank line and its context, or nothing."""
    context = None if config.context_field is None else fields[config.context_field]
    if context is None:
        return ""
    if not isinstance(context, str):
        raise UserError(f"{place}: field {config.context_field!r} is not a text")
    return f"\n\n{context}" if context.strip() else ""
