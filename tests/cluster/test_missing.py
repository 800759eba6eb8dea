"""Why an actor has no place, in words that name what is missing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray

from cluster.missing import GIB, Node, demand, lacking, missing
from configs.fleets import EngineConfig, FleetConfig

SMALL = Node({"CPU": 4.0, "memory": 16.0 * GIB}, {"kind": "reward"})
LARGE = Node({"CPU": 32.0, "GPU": 4.0, "memory": 256.0 * GIB}, {"kind": "rollout"})
ALL_FREE = {"CPU": 36.0, "GPU": 4.0, "memory": 272.0 * GIB}


@pytest.mark.parametrize(
    ("asked", "free", "sentence"),
    [
        (
            {"gpus": 1, "tensor_parallel": 8},
            {},
            "it asks for 1 CPU and 8 GPUs on one node, and no node has more than 4 GPUs",
        ),
        (
            {"cpus": 2, "gpus": 1},
            {"GPU": 0.0},
            "it asks for 2 CPUs and 1 GPU on one node, and the cluster has 0 GPUs free",
        ),
        (
            {"cpus": 8, "memory_gib": 300},
            {},
            "it asks for 8 CPUs and 300 GiB of memory on one node, and no node has more than 256"
            " GiB of memory",
        ),
        (
            {"labels": {"kind": "judge"}},
            {},
            "it asks for 1 CPU and the label kind=judge on one node, and no node has the label"
            " kind=judge",
        ),
        (
            {"gpus": 0.5, "labels": {"kind": "reward"}},
            {},
            "it asks for 1 CPU, 0.5 GPUs and the label kind=reward on one node, and no such"
            " node has more than 0 GPUs",
        ),
        (
            {"cpus": 8, "gpus": 1},
            {"CPU": 10.0},
            "it asks for 8 CPUs and 1 GPU on one node, and no node that has it in all has it free"
            " at once",
        ),
    ],
)
def test_the_sentence_names_what_is_missing(asked, free, sentence):
    config = EngineConfig.model_validate(asked)
    assert missing(config, [SMALL, LARGE], ALL_FREE | free) == sentence


def test_ranks_find_their_places_all_at_once():
    rank = FleetConfig(cpus=4, gpus=1)
    sentence = missing(rank, [SMALL, LARGE], ALL_FREE | {"GPU": 1.0}, 2)
    assert sentence == (
        "each of its 2 ranks asks for 4 CPUs and 1 GPU on one node, and the cluster has 1 GPU free"
    )


def test_a_cluster_without_nodes_has_nothing():
    assert missing(FleetConfig(), [], {}).endswith("and the cluster has no nodes")


def test_an_actor_asks_for_nothing_that_is_zero():
    assert demand(FleetConfig(cpus=0)) == {}
    assert demand(EngineConfig(gpus=1, tensor_parallel=2)) == {"CPU": 1.0, "GPU": 2.0}


class Slow:
    """An actor whose start takes until a file exists."""

    def __init__(self, begun: Path, go_on: Path) -> None:
        begun.touch()
        while not go_on.exists():
            time.sleep(0.02)


@pytest.mark.usefixtures("ray_session")
def test_an_actor_that_is_still_starting_has_a_place_and_one_that_nothing_can_hold_has_none(
    tmp_path,
):
    config = FleetConfig(cpus=0, gpus=1)
    begun, go_on = tmp_path / "begun", tmp_path / "go_on"
    starting = ray.remote(Slow).options(num_cpus=0).remote(begun, go_on)
    nowhere = ray.remote(Slow).options(num_cpus=0, num_gpus=1).remote(begun, go_on)
    try:
        while not begun.exists():
            time.sleep(0.02)
        assert lacking(starting, config) is None
        sentence = "it asks for 1 GPU on one node, and no node has more than 0 GPUs"
        assert lacking(nowhere, config) == sentence
    finally:
        go_on.touch()
        ray.kill(starting)
        ray.kill(nowhere)
