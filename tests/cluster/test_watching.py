"""What watches a run: Prometheus' configuration and alerts, Grafana's dashboard."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import yaml

from cluster.deploy.grafana.dashboard import rendered
from cluster.member import State
from tests.cluster.dashboards import (
    DEPLOY,
    ROOT,
    RULES,
    TARGET,
    alert_questions,
    alerts,
    dashboard,
    dashboard_questions,
    exported,
    grouped,
    panels,
    used,
)

PROMETHEUS = DEPLOY / "prometheus"
ELSEWHERE = {
    "selfplay_queries_admitted_ratio",
    "selfplay_stopping",
    "selfplay_verdicts_unparsable_ratio",
}
"""Metrics on no panel: queries and verdicts stand there as rates, and one is for an alert."""
ROWS = ["Overview", "Fleets", "Rollout", "Rewards and game", "Learner", "Weight sync", "Faults"]


# --- Prometheus ---


def promtool(debian_program: Any, *arguments: object) -> None:
    program = debian_program("promtool", "prometheus")
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_its_rules(debian_program):
    promtool(debian_program, "check", "config", PROMETHEUS / "prometheus.yml")


def test_alerts_pass_their_unit_tests(debian_program):
    promtool(debian_program, "test", "rules", PROMETHEUS / "alerts.test.yml")


def test_every_alert_is_seen_to_fire_and_not_to_fire():
    cases = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]
    seen = {
        (one["alertname"], bool(one.get("exp_alerts")))
        for case in cases
        for one in case["alert_rule_test"]
    }
    assert seen == {(rule["alert"], fires) for rule in alerts() for fires in (True, False)}


def seconds(duration: str) -> int:
    count, unit = re.fullmatch(r"(\d+)([smh])", duration).groups()  # pyright: ignore
    return int(count) * {"s": 1, "m": 60, "h": 3600}[unit]


def test_alerts_wait_for_several_scrapes_and_not_for_hours():
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    scrape = seconds(config["global"]["scrape_interval"])
    (job,) = config["scrape_configs"]
    assert seconds(job["http_sd_configs"][0]["refresh_interval"]) <= 15
    for rule in alerts():
        assert 60 <= seconds(rule["for"]) <= 3600, rule["alert"]
        for window in re.findall(r"\[(\w+)\]", rule["expr"]):
            assert seconds(window) >= 10 * scrape, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_each_alert_has_its_entry_in_the_runbook():
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"


def test_the_runbook_names_panels_that_are_there():
    text = (ROOT / "docs" / "alerts.md").read_text()
    shown = {panel["title"] for panel in dashboard()["panels"]}
    named = set(re.findall(r'"([^"]+)"', re.sub(r"\s+", " ", text)))
    assert named
    assert named <= shown


def test_alerts_know_the_states_of_a_member():
    (named,) = re.findall(r'state=~"([^"]+)"', RULES.read_text())
    assert set(named.split("|")) <= {state.value for state in State}


# --- Grafana ---


def test_the_dashboard_is_what_its_description_makes():
    assert (DEPLOY / "grafana" / "selfplay.json").read_text("utf-8") == rendered()


def test_every_panel_says_what_it_shows():
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    assert [p["title"] for p in dashboard()["panels"] if p["type"] == "row"] == ROWS
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert re.fullmatch(r"short|percentunit|s|bytes|Bps|sci|suffix:[a-z/]+", unit), unit
        if panel["type"] == "timeseries":
            assert panel["options"]["legend"]["showLegend"]
        assert all(target["legendFormat"] for target in panel["targets"])


def test_panels_lie_side_by_side():
    taken = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


def test_the_expressions_of_the_dashboard_parse(debian_program, tmp_path):
    rules = [
        {"record": f"panel:{i}", "expr": question.expression}
        for i, question in enumerate(dashboard_questions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool(debian_program, "check", "rules", path)


def test_expressions_ask_for_what_a_run_exports():
    known = exported()
    for question in [*dashboard_questions(), *alert_questions()]:
        series = used(question.expression)
        assert series, question
        for name, labels in series:
            assert name in known, f"{question.asked_by}: {name}"
            assert labels <= known[name], f"{question.asked_by}: {labels - known[name]}"
        labels = set().union(*(known[name] for name, _ in series))
        assert grouped(question.expression) <= labels | TARGET, question
        named = set(re.findall(r"{{(\w+)}}", question.legend))
        assert named <= grouped(question.expression), question


def test_every_metric_of_a_run_is_on_the_dashboard():
    asked = [name for q in dashboard_questions() for name, _ in used(q.expression)]
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    own = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported() if "selfplay_" in name}
    assert own - shown == ELSEWHERE


def test_variables_of_the_dashboard_are_those_that_expressions_use():
    variables = {one["name"] for one in dashboard()["templating"]["list"]}
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert variables == set(re.findall(r"\$(\w+)", " ".join(expressions))) | {"datasource"}


def test_grafana_is_provisioned_with_the_data_source_and_the_dashboard():
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())
    assert source["datasources"][0]["type"] == "prometheus"
    interval = source["datasources"][0]["jsonData"]["timeInterval"]
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]
    assert interval == scraped["scrape_interval"]
    provider = yaml.safe_load((provisioning / "dashboards" / "selfplay.yml").read_text())
    assert provider["providers"][0]["type"] == "file"
