"""Turns pydantic's findings into sentences that name the key, the file and what is allowed."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Location = tuple[int | str, ...]
Source = Callable[[str], str]
"""Where a dotted key was written: a file's name, or an override of the command line."""


def sentences(error: ValidationError, root: type[BaseModel], source: Source) -> list[str]:
    """One sentence per problem of `error`, which came out of validating `root`."""
    return [_sentence(dict(problem), root, source) for problem in error.errors()]


def _sentence(problem: dict[str, Any], root: type[BaseModel], source: Source) -> str:
    key, parent, field = _find(root, problem["loc"])
    where = source(key)
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key {key}; {_instead(key, parent)}"
        case "missing":
            return f"{where}: {key} is missing{_meaning(field)}"
        case "value_error":
            reason = problem["msg"].removeprefix("Value error, ")
            return f"{where}: {reason}" if not key or key in reason else f"{where}: {key}: {reason}"
        case "union_tag_not_found" | "union_tag_invalid":
            allowed = problem["ctx"].get("expected_tags", "'preference', 'verifier'")
            return f"{where}: {key}.kind must be one of {allowed}"
        case _:
            return f"{where}: {key} {_demand(problem)}, not {problem['input']!r}{_meaning(field)}"


def _demand(problem: dict[str, Any]) -> str:
    """pydantic's message as what follows the key."""
    if problem["type"] == "model_type":
        return "must be a section with keys of its own"
    message = re.sub(r"^(Input|List|Tuple|String) ", "", problem["msg"])
    return re.sub(r"^should be", "must be", message).replace(" for <class 'pathlib.Path'>", "")


def _instead(key: str, parent: type[BaseModel] | None) -> str:
    """What the writer of an unknown key may have meant."""
    fields = list(parent.model_fields) if parent else []
    section, _, name = key.rpartition(".")
    prefix = f"{section}." if section else ""
    close = difflib.get_close_matches(name, fields, n=1, cutoff=0.6)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"{section or 'the top level'} has the keys {', '.join(fields)}"


def _meaning(field: FieldInfo | None) -> str:
    text = " ".join((field.description or "").split()) if field else ""
    return f" ({text.rstrip('.')})" if text else ""


def _find(
    root: type[BaseModel], location: Location
) -> tuple[str, type[BaseModel] | None, FieldInfo | None]:
    """The dotted key of a location, the section it stands in, and its field.

    pydantic puts the tag of a discriminated union into the location; the key leaves it out.
    """
    kind: Any = root
    parent: type[BaseModel] | None = root
    field: FieldInfo | None = None
    steps: list[str] = []
    for step in location:
        sections = [t for t in _alternatives(kind) if _is_section(t)]
        tagged = [section for section in sections if step in _tags(section)]
        if tagged:
            kind = tagged[0]
            continue
        steps.append(str(step))
        parent = sections[0] if sections else None
        field = parent.model_fields.get(str(step)) if parent else None
        kind = field.annotation if field else _item(kind)
    return ".".join(steps), parent, field


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _alternatives(kind: Any) -> Iterator[Any]:
    """The members of a union, through Annotated; the kind itself where it is no union."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _alternatives(get_args(kind)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _alternatives(member)
    else:
        yield kind


def _tags(section: type[BaseModel]) -> tuple[Any, ...]:
    """The values of `kind` that select this section in a discriminated union."""
    field = section.model_fields.get("kind")
    is_literal = field is not None and get_origin(field.annotation) is Literal
    return typing.get_args(field.annotation) if field and is_literal else ()


def _item(kind: Any) -> Any:
    """What a list or a mapping holds."""
    for each in _alternatives(kind):
        if get_origin(each) in (list, tuple, dict):
            return get_args(each)[-1 if get_origin(each) is dict else 0]
    return None
