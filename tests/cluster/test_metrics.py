"""The driver's metrics: numbers, names, files, and discovery."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from cluster import metrics, scraping
from cluster.metrics import History, begin, observe, scalars
from cluster.scraping import Discovery, FleetFigures, Scraped, Target
from configs.errors import UserError
from configs.load import load
from evaluation.run_files import read_history
from tests.conftest import ROOT
from tests.evaluation.synthetic import PRESETS, records


@pytest.fixture(scope="module")
def played():
    return records(load(PRESETS / "quickstart.yaml", ["queries=4", "answers=4"]), 4)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_an_iteration_is_exported(played):
    record = dataclasses.replace(played[1], verdicts_unparsable=0.25)
    assert record.rejected, "the test needs rejected queries"
    names = ["selfplay_queries_admitted_total", "selfplay_tokens_generated_total"]
    before = [sample(name) for name in names]
    reason, count = next(iter(record.rejected.items()))
    rejected = sample("selfplay_queries_rejected_total", reason=reason)
    trained = sample("selfplay_phase_seconds_total", phase="train")
    observe(record, 150)
    assert [sample(name) for name in names] == [
        before[0] + record.admitted,
        before[1] + record.tokens_generated,
    ]
    assert sample("selfplay_queries_rejected_total", reason=reason) == rejected + count
    now = sample("selfplay_phase_seconds_total", phase="train")
    assert now - trained == pytest.approx(record.seconds["train"])
    assert sample("selfplay_reward", role="challenger") == record.reward_challenger
    assert sample("selfplay_reward", role="solver") == record.reward_solver
    assert sample("selfplay_reward_part", part="solved") == record.parts["solved"]
    assert sample("selfplay_verdicts_unparsable_ratio") == 0.25
    assert (sample("selfplay_iteration"), sample("selfplay_policy_version")) == (2, 2)


def test_a_life_that_begins_forgets_the_version_that_the_last_one_published(played):
    """Until its first publish, engines that hold an older version are not behind."""
    observe(played[3], 150)
    begin(2, 150)
    assert (sample("selfplay_iteration"), sample("selfplay_policy_version")) == (2, 0)
    assert sample("selfplay_iterations_target") == 150


def fleet(*states: str, restarts: int = 1) -> Any:
    """What is exported of a fleet."""
    members = [
        {"state": state, "name": f"judge-{i}", "metrics_address": f"127.0.0.1:{i}"}
        for i, state in enumerate(states)
    ]
    return SimpleNamespace(
        describe=lambda: members,
        restarts=restarts,
        target=4,
        unplaced={"judge-3": "it asks for 1 GPUs"},
        in_flight=5,
        waiting=6,
    )


def test_fleets_are_exported_as_they_are_at_the_moment_of_a_scrape():
    registry, fleets = CollectorRegistry(), {"judge": fleet("serving", "serving", "stale")}
    registry.register(FleetFigures(lambda: fleets))

    def shown(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"selfplay_fleet_{name}", {"fleet": "judge"} | labels)

    assert shown("members", state="serving") == 2
    assert shown("members", state="stale") == 1
    # No iteration ends between: that is when a fleet that is short stalls the game.
    fleets["judge"] = fleet("serving", "starting", restarts=3)
    assert shown("members", state="serving") == 1
    assert shown("members", state="starting") == 1
    assert shown("members", state="stale") == 0
    assert shown("restarts") == 3
    assert shown("target_members") == 4
    assert shown("unplaced_members") == 1
    assert shown("calls", state="in_flight") == 5
    assert shown("calls", state="waiting") == 6


@pytest.fixture
def scraped(tmp_path) -> Iterator[Scraped]:
    scraped = Scraped(load(PRESETS / "quickstart.yaml", [f"run_dir={tmp_path / 'lsp'}"]))
    yield scraped
    scraped.close()


def test_all_lives_of_a_run_are_found_at_one_address(scraped):
    url = scraped.follow({"judge": fleet("serving", "serving")})
    scraped.found([{"metrics_address": "127.0.0.1:7"}])
    first = fetch(url)
    assert [group["labels"].get("member") for group in first] == [
        None, "learner-0", "judge-0", "judge-1",
    ]  # fmt: skip
    assert {group["labels"]["run"] for group in first} == {"lsp"}
    # The learner is lost, and all actors with it.
    assert scraped.follow({"judge": fleet("serving")}) == url
    driver, judge = fetch(url)
    assert driver == first[0]
    assert judge["labels"]["member"] == "judge-0"
    with urllib.request.urlopen(f"http://{driver['targets'][0]}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    assert 'selfplay_fleet_members{fleet="judge",state="serving"} 1.0' in text


METRIC = re.compile(r"(Counter|Gauge|Histogram)(?:MetricFamily)?\(\s*\"(selfplay_\w+)\"")


def names_in_code() -> set[str]:
    """The names that a scrape shows, read off the sources of every package."""
    found = set()
    for package in ("actors", "rewards", "learner", "cluster"):
        for path in (ROOT / package).rglob("*.py"):
            for kind, name in METRIC.findall(path.read_text()):
                counted = kind == "Counter" and not name.endswith("_total")
                found.add(f"{name}_total" if counted else name)
    return found


def test_every_metric_is_documented_and_every_documented_one_exists():
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(selfplay_\w+)`", text, re.MULTILINE)) == names_in_code()


def test_names_follow_prometheus_conventions():
    for name in names_in_code():
        assert not re.search(r"_(ms|minutes|percent|mb|gib|kb)(_|$)", name), name


def test_history_is_one_object_per_iteration_and_tensorboard_has_its_numbers(played, tmp_path):
    history = History(tmp_path, 0)
    for record in played:
        history.write(record)
    history.close()
    rows = read_history(tmp_path)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert rows[2]["v"] == played[2].v
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 1000


def test_a_resumed_history_takes_out_what_is_played_again(played, tmp_path):
    first = History(tmp_path, 0)
    for record in played:
        first.write(record)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "cut sho')
    second = History(tmp_path, 2)
    second.write(played[2])
    second.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1, 2]


def test_a_full_disk_is_named_with_the_history(played, tmp_path):
    history = History(tmp_path, 0)
    history.write(played[0])
    (tmp_path / "metrics.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as begun:
        History(tmp_path, 1)
    history.path.unlink()
    history.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as added:
        history.write(played[1])
    history.close()
    assert begun.value.filename == added.value.filename == str(tmp_path / "metrics.jsonl")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_directory_that_is_gone_is_one_sentence(played, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    history = History(run_dir, 0)
    try:
        shutil.rmtree(run_dir)
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: the run directory"):
            history.write(played)
    finally:
        history.close()
    assert not run_dir.exists()


def test_a_board_that_cannot_be_written_to_its_end_ends_nothing(played, tmp_path, caplog):
    history = History(tmp_path, 0)
    history.write(played[0])

    def close() -> None:
        raise OSError(28, "No space left on device")

    history._board.close = close
    history.close()
    assert "the end of" in caplog.text


def test_scalars_are_numbers_under_their_section(played):
    found = dict(scalars(played[0]))
    assert found["parts/solved"] == played[0].parts["solved"]
    assert found["learner/kl_solver"] == 0.0
    assert found["game/admitted"] == 4
    assert all(isinstance(value, float) for value in found.values())


def fetch(url: str):
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        return json.load(answer)


def test_discovery_lists_the_targets_that_live_at_the_time_of_asking():
    targets = [Target("127.0.0.1:9001", {"fleet": "rollout", "member": "rollout-0"})]
    discovery = Discovery("127.0.0.1", 0, lambda: targets)
    try:
        assert fetch(discovery.url) == [
            {"targets": ["127.0.0.1:9001"], "labels": {"fleet": "rollout", "member": "rollout-0"}}
        ]
        targets.append(Target("127.0.0.1:9002"))
        assert [group["targets"] for group in fetch(discovery.url)] == [
            ["127.0.0.1:9001"], ["127.0.0.1:9002"],
        ]  # fmt: skip
    finally:
        discovery.close()


def test_a_discovery_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"metrics.discovery_port {port}: cannot listen"):
            Discovery("127.0.0.1", port, list)


@pytest.mark.parametrize("module", [metrics, scraping])
def test_the_driver_defines_no_name_twice(module):
    names = re.findall(r'"(selfplay_\w+)"', Path(module.__file__).read_text())
    assert len(names) == len(set(names))
