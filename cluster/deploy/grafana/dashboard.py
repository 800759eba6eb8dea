"""Makes selfplay.json, the Grafana dashboard, of panels.yaml.

    python -m cluster.deploy.grafana.dashboard

Grafana's JSON says of every panel what is the same for all; this file says it once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
PANELS = FOLDER / "panels.yaml"
DASHBOARD = FOLDER / "selfplay.json"
SCHEMA = 41
"""Grafana 12's; later ones migrate it."""
COLUMNS = 24
WIDTHS = {"timeseries": 8, "stat": 3}
HEIGHTS = {"timeseries": 8, "stat": 4}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": "selfplay",
        "title": "selfplay",
        "description": "A run of Language Self-Play",
        "tags": ["selfplay"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": list(_placed(yaml.safe_load(PANELS.read_text("utf-8")))),
    }


def rendered() -> str:
    """The text of selfplay.json."""
    return f"{json.dumps(dashboard(), indent=1, ensure_ascii=False)}\n"


def _placed(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every row and panel with its number and its place, from left to right and down."""
    number, top = 1, 0
    for row in rows:
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {
            "id": number, "type": "row", "title": row["row"], "gridPos": place,
            "collapsed": False, "panels": [],
        }  # fmt: skip
        number, left, top, height = number + 1, 0, top + 1, 0
        for panel in row["panels"]:
            kind = panel.get("kind", "timeseries")
            width = panel.get("width", WIDTHS[kind])
            if left + width > COLUMNS:
                left, top, height = 0, top + height, 0
            place = {"h": HEIGHTS[kind], "w": width, "x": left, "y": top}
            yield {"id": number, "type": kind, "gridPos": place, **_panel(panel, kind)}
            number, left, height = number + 1, left + width, max(height, HEIGHTS[kind])
        top += height


def _panel(panel: dict[str, Any], kind: str) -> dict[str, Any]:
    queries = enumerate(panel["queries"].items())
    return {
        "title": panel["title"],
        "description": panel["description"],
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": _field(panel, kind), "overrides": []},
        "options": _number_options() if kind == "stat" else _curve_options(),
        "targets": [_target(chr(ord("A") + i), *query) for i, query in queries],
    }


def _target(name: str, legend: str, expression: str) -> dict[str, Any]:
    return {
        "refId": name,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": expression,
        "legendFormat": legend,
        "range": True,
    }


def _field(panel: dict[str, Any], kind: str) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel["unit"]}
    if "nothing" in panel:
        field["noValue"] = panel["nothing"]
    if "top" in panel:
        field |= {"min": 0, "max": panel["top"]}
    if kind == "timeseries":
        field["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 5}
    return field


def _curve_options() -> dict[str, Any]:
    return {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _number_options() -> dict[str, Any]:
    return {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "none",
        "graphMode": "area",
        "textMode": "value",
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        _values("run", "Run", "label_values(selfplay_iteration, run)", many=False),
        _values("fleet", "Fleet", 'label_values(up{run=~"$run", fleet!=""}, fleet)', many=True),
        _windows("1m", "5m", "15m", "1h"),
    ]


def _values(name: str, label: str, query: str, many: bool) -> dict[str, Any]:
    """A variable with the values that a label has; `many` of them can be chosen, or all."""
    variable: dict[str, Any] = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
    }
    everything = {"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}}
    return variable | everything if many else variable


def _windows(*windows: str) -> dict[str, Any]:
    options = [{"text": one, "value": one, "selected": one == windows[1]} for one in windows]
    return {
        "name": "window",
        "label": "Rates over",
        "type": "custom",
        "query": ",".join(windows),
        "options": options,
        "current": options[1],
    }


if __name__ == "__main__":
    DASHBOARD.write_text(rendered(), "utf-8")
    print(DASHBOARD)
