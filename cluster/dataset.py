"""Queries out of a file or the hub: read, checked row by row, with errors that name the row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import UserError
from configs.functions import resolve
from configs.schema import DatasetConfig
from evaluation.rows import json_lines, read_text

PATH, ADAPTER = "source.dataset.path", "source.dataset.adapter"
JSON_LINES = (".jsonl", ".jsonl.gz")
SUFFIXES = (".json", *JSON_LINES, ".parquet")
"""How the name of a file of rows ends."""

Fields = Mapping[str, Any]
Numbered = Iterable[tuple[str, Fields]]
"""(where it stands, fields) of each row."""


@dataclass(frozen=True, slots=True)
class Row:
    """A query and, where the configuration names its field, the reference answer."""

    query: str
    reference: str | None


def load_rows(config: DatasetConfig) -> list[Row]:
    """All rows of a file or of a hub data set's split.

    Raises UserError where it is missing, empty or malformed, with the number of the bad line or
    row, and where the adapter cannot be imported or fails on a row.
    """
    numbered = _numbered(config)
    if config.adapter is not None:
        numbered = _adapted(config.adapter, resolve(ADAPTER, config.adapter), numbered)
    rows = [_row(config, place, fields) for place, fields in numbered]
    if not rows:
        raise UserError(f"{PATH} {config.path} holds no rows")
    return rows


def is_file(config: DatasetConfig) -> bool:
    """Whether `path` means a file, there or not, and no hub data set."""
    return config.path.endswith(SUFFIXES) or Path(config.path).exists()


def _numbered(config: DatasetConfig) -> Numbered:
    path = Path(config.path)
    if not is_file(config):
        return _hub(config)
    if path.name.endswith(JSON_LINES):
        return json_lines(path, PATH)
    if path.suffix == ".json":
        return _json(path)
    if path.suffix == ".parquet":
        return _parquet(path, config)
    raise UserError(f"{PATH} {path} is no file of rows: its name ends in none of {SUFFIXES}")


def _json(path: Path) -> Iterator[tuple[str, Fields]]:
    text = read_text(path, PATH)
    try:
        rows = json.loads(text) if text.strip() else []
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON: {error}; lines with an object each belong into a .jsonl file"
        ) from error
    if not isinstance(rows, list):
        raise UserError(f"{path} is a JSON {type(rows).__name__}, not a list of objects")
    for number, fields in enumerate(rows, start=1):
        if not isinstance(fields, dict):
            raise UserError(f"{path} row {number} is not a JSON object")
        yield f"{path} row {number}", fields


def _parquet(path: Path, config: DatasetConfig) -> Numbered:
    try:
        file = pq.ParquetFile(path)
        present = [name for name in _fields(config) if name in file.schema_arrow.names]
        # An adapter may read any of them.
        rows = file.read(columns=present if config.adapter is None else None).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{PATH} {path} cannot be read: {error}") from error
    return ((f"{path} row {number}", row) for number, row in enumerate(rows, start=1))


def _hub(config: DatasetConfig) -> Numbered:
    # Seconds to import, and most runs need no hub.
    from datasets import load_dataset  # noqa: PLC0415
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        rows = load_dataset(config.path, config.subset, split=config.split)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"{PATH} {config.path!r} is no file here, and as a hub data set with subset"
            f" {config.subset!r} and split {config.split!r} it cannot be loaded:"
            f" {_first_line(error)}"
        ) from error
    place = f"{config.path}[{config.split}] row"
    return ((f"{place} {number}", row) for number, row in enumerate(_dicts(rows), start=1))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _dicts(rows: Iterable[Any]) -> Iterator[dict[str, Any]]:
    return (dict(row) for row in rows)


def _adapted(name: str, adapt: Callable[[Fields], Any], numbered: Numbered) -> Numbered:
    """The rows that the adapter makes."""
    for place, fields in numbered:
        try:
            adapted = adapt(fields)
        except Exception as error:
            raise UserError(
                f"{place}: {ADAPTER} {name!r} cannot read it ({type(error).__name__}: {error}); it"
                f" has {sorted(fields)}: name the adapter of this data set, or mend it"
            ) from error
        if not isinstance(adapted, Mapping):
            raise UserError(
                f"{place}: {ADAPTER} {name!r} returned a {type(adapted).__name__}: it has to return"
                " the fields of a row by name"
            )
        yield place, adapted


def _fields(config: DatasetConfig) -> list[str]:
    named = (config.query_field, config.context_field, config.reference_field)
    return [name for name in named if name is not None]


def _row(config: DatasetConfig, place: str, fields: Fields) -> Row:
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


def _context(config: DatasetConfig, place: str, fields: Fields) -> str:
    """What follows the query of a row: a blank line and its context, or nothing."""
    context = None if config.context_field is None else fields[config.context_field]
    if context is None:
        return ""
    if not isinstance(context, str):
        raise UserError(f"{place}: field {config.context_field!r} is not a text")
    return f"\n\n{context}" if context.strip() else ""
