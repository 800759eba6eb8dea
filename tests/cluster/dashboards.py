"""What the shipped dashboard and alerts ask Prometheus for, and what there is to be asked for."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from tests.conftest import ROOT

DEPLOY = ROOT / "cluster" / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"

TARGET = {"run", "fleet", "member", "instance", "job"}
"""Labels that every target has, of the discovery's or by cluster/deploy/prometheus."""
OWN = {"up": TARGET, "ALERTS": TARGET | {"alertname", "alertstate"}}
"""What Prometheus itself makes."""
WITH_LABELS = ("by", "without", "on", "ignoring", "group_left", "group_right")
OPERATORS = {"and", "or", "unless", "offset", "bool", *WITH_LABELS}


@dataclass(frozen=True)
class Question:
    """An expression, of a panel or an alert, with the variables filled in."""

    asked_by: str
    expression: str
    legend: str = ""
    may_be_empty: bool = False
    """Whether the panel says what it means that there is no data."""


def dashboard() -> dict[str, Any]:
    """The dashboard as it is shipped."""
    return json.loads((DEPLOY / "grafana" / "selfplay.json").read_text("utf-8"))


def panels() -> list[dict[str, Any]]:
    """Its panels, rows aside."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def dashboard_questions(run: str = ".*", fleet: str = ".*", window: str = "1m") -> list[Question]:
    """Every expression of the dashboard, for a run and a fleet (regular expressions)."""
    values = {"$run": run, "$fleet": fleet, "$window": window}

    def filled(expression: str) -> str:
        return re.sub(r"\$\w+", lambda found: values[found.group()], expression)

    return [
        Question(
            panel["title"],
            filled(target["expr"]),
            target["legendFormat"],
            "noValue" in panel["fieldConfig"]["defaults"],
        )
        for panel in panels()
        for target in panel["targets"]
    ]


def alerts() -> list[dict[str, Any]]:
    """The alert rules."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alert_questions() -> list[Question]:
    """The expression of every alert, which is empty as long as all is well."""
    return [Question(rule["alert"], rule["expr"], may_be_empty=True) for rule in alerts()]


def operands(expression: str) -> str:
    """An alert's expression that has data wherever what it compares has, whether it fires or not;
    without what it leaves out."""
    text = expression.partition("unless on")[0]
    return re.sub(r"(==|<=|>=|<|>)(?![=~])", r"\1 bool", text)


def exported() -> dict[str, set[str]]:
    """Every series a run exports, with its labels: docs/metrics.md, vLLM's, the process's own."""
    found = dict(OWN)
    for name, kind, labels in [*_documented(), *_of_vllm(), *_of_processes()]:
        for series, more in _series(name, kind):
            found[series] = TARGET | labels | more
    return found


def used(expression: str) -> list[tuple[str, set[str]]]:
    """The series that an expression names, each with the labels it is selected by."""
    text = re.sub(r'"[^"]*"', '""', expression)
    text = re.sub(rf"\b({'|'.join(WITH_LABELS)})\s*\([^)]*\)|\[[^]]*\]", " ", text)
    named = re.findall(r"(?<![\w.:])([a-zA-Z_:][\w:]*)(\s*\()?(\{[^}]*\})?", text)
    return [
        (name, set(re.findall(r"(\w+)\s*[=!]", selector)))
        for name, called, selector in named
        if not called and name not in OPERATORS
    ]


def grouped(expression: str) -> set[str]:
    """The labels that an expression groups or matches by."""
    lists = re.findall(rf"\b(?:{'|'.join(WITH_LABELS)})\s*\(([^)]*)\)", expression)
    return {label for one in lists for label in re.findall(r"\w+", one)}


def _documented() -> Iterator[tuple[str, str, set[str]]]:
    """Name, kind and labels of each row of docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\|", text, re.MULTILINE):
        yield name, kind, set(re.findall(r"`(\w+)`", labels))


def _of_vllm() -> Iterator[tuple[str, str, set[str]]]:
    """The same of the metrics that the installed vLLM defines, read off its source."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    source = (Path(vllm.origin).parent / "v1" / "metrics" / "loggers.py").read_text("utf-8")
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        kind = call.func.attr.removeprefix("_").removesuffix("_cls")
        options = {option.arg: option.value for option in call.keywords}
        name = options.get("name")
        if kind in ("counter", "gauge", "histogram") and isinstance(name, ast.Constant):
            total = "_total" if kind == "counter" else ""
            yield f"{name.value}{total}", kind, _labels(options)


def _labels(options: dict[str | None, ast.expr]) -> set[str]:
    """The labels every metric of vLLM has, and those that this one adds to them."""
    added = ast.walk(options["labelnames"]) if "labelnames" in options else ()
    texts = {node.value for node in added if isinstance(node, ast.Constant)}
    return {"engine", "model_name"} | {text for text in texts if isinstance(text, str)}


def _of_processes() -> Iterator[tuple[str, str, set[str]]]:
    """The same of what prometheus-client tells of any process."""
    for family in ProcessCollector(registry=CollectorRegistry()).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield name, family.type, set()


def _series(name: str, kind: str) -> Iterator[tuple[str, set[str]]]:
    """The series of a metric, with the label that a bucket adds."""
    if kind != "histogram":
        yield name, set()
        return
    yield f"{name}_bucket", {"le"}
    yield f"{name}_sum", set()
    yield f"{name}_count", set()
