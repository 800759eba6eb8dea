"""The safety classifier through real Ray: calls, metrics, errors of its start."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors.classifier_actor import ClassifierActor
from actors.member import Post
from configs.safety import SafetyConfig
from tests.actors.classifiers import LABELS, TEXTS, save_words


def spawn(model: Path, **settings: Any) -> Any:
    safety = {"model": str(model), "labels": ["weapons", "drugs"], "max_tokens": 32} | settings
    actor = ray.remote(ClassifierActor).options(num_cpus=0)
    section = SafetyConfig.model_validate(safety)
    return actor.remote(section, post=Post("safety-0", "127.0.0.1"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def actor(ray_session: None, words: Path) -> Iterator[Any]:
    actor = spawn(words)
    yield actor
    ray.get(actor.stop.remote())
    ray.kill(actor)


def test_overlapping_calls_get_their_own_labels_and_are_counted(actor: Any):
    calls = [actor.classify.remote(TEXTS[n:] + TEXTS[:n]) for n in range(len(TEXTS))]
    expected = [None, "weapons", "drugs", "drugs"]
    assert ray.get(calls) == [expected[n:] + expected[:n] for n in range(len(TEXTS))]
    about = ray.get(actor.describe.remote())
    assert about["name"] == "safety-0"
    assert about["pid"] != os.getpid()
    with urllib.request.urlopen(f"http://{about['metrics_address']}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    for line in (
        "selfplay_safety_queries_total 16.0",
        'selfplay_safety_rejected_total{label="weapons"} 4.0',
        'selfplay_safety_rejected_total{label="drugs"} 8.0',
        "selfplay_safety_call_seconds_count 4.0",
    ):
        assert line in metrics


def test_a_mistake_of_the_user_is_the_last_line_of_the_error_of_its_start(
    ray_session: None, words: Path
):
    with pytest.raises(RayActorError) as told:
        ray.get(spawn(words, labels=["arms"]).describe.remote())
    last_line = str(told.value).strip().rpartition("\n")[2]
    assert "UserError: gate.safety.labels: " in last_line
    assert last_line.endswith(", ".join(map(repr, LABELS.values())))
