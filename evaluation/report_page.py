"""What all pages of the report have in common: the templates, and how figures are written.

Model-written text is escaped by the templates (autoescape); only our own SVG is marked safe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from configs.errors import naming

LONG = 1200
"""Characters after which a model's text is cut."""


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Write a page that needs nothing from the network; return its path."""
    page = _environment().get_template(template).render(**content)
    with naming(path):
        path.write_text(page, "utf-8", errors="replace")
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": number,
        "count": count,
        "percent": percent,
        "points": points,
        "between": between,
        "shorten": shorten,
        "leaning": leaning,
    }
    return environment


def number(value: float | None) -> str:
    """A figure with the digits that matter; – where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def count(value: int) -> str:
    """A count with its thousands apart."""
    return f"{value:,}"


def percent(value: float | None) -> str:
    """A fraction as per cent; – where there is none."""
    return "–" if value is None else f"{100 * value:.1f}%"


def points(value: float | None) -> str:
    """A difference of fractions in percentage points, signed; – where there is none."""
    return "–" if value is None else f"{100 * value:+.1f}"


def between(ends: Sequence[float] | None, form: str = "percent") -> str:
    """An interval: `percent` of fractions, `points` of differences, `plain` as it is."""
    if ends is None:
        return "–"
    write = {"percent": percent, "points": points, "plain": lambda end: f"{end:.1f}"}[form]
    return f"{write(ends[0])} to {write(ends[1])}"


def leaning(ends: Sequence[float] | None) -> str:
    """The class of a difference whose interval leaves 0 out: good above it, bad below."""
    if ends is None or ends[0] <= 0 <= ends[1]:
        return ""
    return "good" if ends[0] > 0 else "bad"


def shorten(text: str) -> str:
    """A model's text, cut where it is very long."""
    return text if len(text) <= LONG else f"{text[:LONG]} … ({len(text) - LONG} more characters)"


def versions_of(settings: str) -> dict[str, str]:
    """The versions that stand in the comments above a run's configuration."""
    lines = [line[2:] for line in settings.splitlines() if line.startswith("# ")]
    pairs = [line.partition(": ") for line in lines]
    return {name: version for name, colon, version in pairs if colon}
