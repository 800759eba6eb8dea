"""The rollout actor through real Ray: calls, weights, metrics, errors of its start."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError
from transformers import LlamaForCausalLM

from actors.member import Post
from actors.packing import checksum, pack
from actors.rollout import RolloutActor
from configs.errors import UserError
from tests.actors.helpers import (
    LONG_PROMPT,
    SAMPLED,
    TINY_ENGINE,
    answer_logprobs,
    ask,
    model_logprobs,
    perturb,
)

TOLERANCE = 1e-4


def spawn(model_path: str) -> Any:
    actor = ray.remote(RolloutActor).options(num_cpus=0)
    return actor.remote(
        model_path,
        TINY_ENGINE,
        post=Post("rollout-0", "127.0.0.1"),
        transfer_backend="object_store",
    )


@pytest.fixture(scope="module")
def actor(ray_session: None, tiny_model: Callable[[bool], Path]) -> Iterator[Any]:
    actor = spawn(str(tiny_model(True)))
    yield actor
    ray.get(actor.stop.remote())
    ray.kill(actor)


def test_engines_without_seeds_do_not_repeat_each_other(actor: Any, tiny_model):
    """Both serve the same weights here. Nor does a restarted engine repeat the one before it."""
    other = spawn(str(tiny_model(True)))
    ours, theirs = ray.get([a.generate.remote(ask(SAMPLED, None, None)) for a in (actor, other)])
    ray.kill(other)
    assert len({tuple(made.token_ids) for made in [*ours, *theirs]}) == 4


def test_a_rollout_actor_plays_learns_and_reports(actor: Any, tiny_model):
    about = ray.get(actor.describe.remote())
    assert about["name"] == "rollout-0"
    assert about["version"] == 0
    assert about["pid"] != os.getpid()
    assert about["node_id"] == ray.get_runtime_context().get_node_id()

    before = scrape(about["metrics_address"])
    model = LlamaForCausalLM.from_pretrained(tiny_model(True))
    perturb(model, 1)
    ray.get(actor.init_transfer.remote({}))
    crossing = actor.generate.remote(ask(SAMPLED, 1, 2, prompt=LONG_PROMPT))
    ray.get(actor.start_update.remote())
    for buffer in pack(model.named_parameters(), 60_000):
        ray.get(actor.load_update.remote(ray.put(buffer)))
    ray.get(actor.finish_update.remote(1))

    assert ray.get(actor.version.remote()) == 1
    assert len(ray.get(crossing)) == 2
    overlapping = [actor.generate.remote(ask(SAMPLED, s, prompt=LONG_PROMPT)) for s in (1, 2)]
    for (made,) in ray.get(overlapping):
        assert (made.version_min, made.version_max) == (1, 1)
        assert np.abs(made.logprobs - answer_logprobs(model, made)).max() < TOLERANCE
    probed = ray.get(actor.probe.remote(LONG_PROMPT))
    assert np.abs(probed - model_logprobs(model, LONG_PROMPT)).max() < TOLERANCE
    norm = model.get_parameter("model.norm.weight")
    checksums = ray.get(actor.checksums.remote(["model.norm.weight"]))
    assert checksums == {"model.norm.weight": checksum(norm)}

    after = scrape(about["metrics_address"])
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert after["selfplay_rollout_policy_version"] == 1
    assert grown["selfplay_rollout_completions_total"] == 4
    assert grown["selfplay_rollout_weight_update_seconds_count"] == 1
    assert 4 <= grown["selfplay_rollout_tokens_total"] <= 4 * SAMPLED.max_tokens
    # vLLM counts the probe's one token too.
    assert grown["vllm:generation_tokens_total"] == grown["selfplay_rollout_tokens_total"] + 1


def scrape(address: str) -> dict[str, float]:
    """What an endpoint serves: each metric's name without its labels, and its value."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    rows = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, value in rows}


def test_a_users_mistake_leaves_a_running_actor_as_what_it_is(actor: Any):
    prompt = np.full(TINY_ENGINE.context, 20, dtype=np.int32)
    with pytest.raises(UserError, match=r"leaves no room in rollout\.context"):
        ray.get(actor.generate.remote(ask(SAMPLED, 1, prompt=prompt)))
    assert len(ray.get(actor.generate.remote(ask(SAMPLED, 1)))) == 1


def test_a_start_that_fails_says_why(ray_session: None):
    with pytest.raises(RayActorError, match="UserError: rollout: no model at '/nowhere/model'"):
        ray.get(spawn("/nowhere/model").describe.remote())
