"""The nodes a plan is made for: described, those of a running cluster, or this machine."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import ray

from cluster.placement import NodeConfig
from cluster.plan import nodes_from, ray_resources, this_machine
from configs.errors import UserError


def test_a_cluster_is_described_in_yaml(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("nodes: [{name: g, count: 2, gpus: 8, gpu_gib: 80, cpus: 96, memory_gib: 500}]")
    assert [node.name for node in nodes_from(path)[1]] == ["g-0", "g-1"]
    path.write_text("nodes: [{name: g, gpu: 8, cpus: 96, memory_gib: 500}]")
    with pytest.raises(UserError, match=r"unknown key nodes.0.gpu; did you mean nodes.0.gpus\?"):
        nodes_from(path)


def test_a_running_cluster_is_asked_for_its_nodes(ray_session):
    where, (node,) = nodes_from(None)
    assert where == "the running Ray cluster"
    assert node.cpus == ray.cluster_resources()["CPU"]
    assert node.memory_gib == pytest.approx(this_machine().memory_gib)
    assert node.reservable_gib == pytest.approx(ray.cluster_resources()["memory"] / 2**30)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"RAY_ADDRESS http://127.0.0.1:1"):
        nodes_from(None)


def test_this_machine_is_described_without_a_gpu_being_taken():
    machine = this_machine()
    assert machine.cpus >= 1
    assert machine.memory_gib > 1


class Described:
    """`ray.remote(...)` whose task runs here, its GPUs hidden as Ray hides them."""

    def __init__(self, function):
        self.function = function

    def options(self, **_: Any) -> Described:
        return self

    def remote(self) -> NodeConfig:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            return self.function()


def test_a_node_of_a_running_cluster_has_its_gpus_memory(monkeypatch, three_gpus):
    node = {"Alive": True, "NodeID": "a" * 56, "NodeManagerHostname": "n", "Labels": {"k": "v"}}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [node | {"Resources": {"CPU": 4.0, "GPU": 3.0}}])
    monkeypatch.setattr(ray, "remote", lambda **_: Described)
    monkeypatch.setattr(ray, "get", lambda found, timeout: found)
    (machine,) = nodes_from(None)[1]
    assert (machine.cpus, machine.gpus, machine.gpu_gib) == (4, 3, 40)
    assert machine.labels == {"k": "v"}


@pytest.fixture
def three_gpus(monkeypatch) -> None:
    """NVIDIA's driver lists three GPUs, of 80, 40 and 80 GiB."""
    listed = "0, GPU-aaaa-1, 81920\n1, GPU-bbbb-2, 40960\n2, GPU-cccc-3, 81920\n"
    monkeypatch.setattr(
        subprocess, "run", lambda query, **_: subprocess.CompletedProcess(query, 0, listed)
    )


@pytest.mark.parametrize(
    ("visible", "gpus", "gib"),
    [
        (None, 3, 40),
        ("", 0, 0),
        ("-1", 0, 0),
        ("0,2", 2, 80),
        ("1", 1, 40),
        ("GPU-bbbb", 1, 40),
        ("GPU-aaaa-1, GPU-cccc-3", 2, 80),
        ("0,7,2", 1, 80),
        ("MIG-dddd", 1, 40),
    ],
)
def test_this_machine_has_the_gpus_that_are_visible(monkeypatch, three_gpus, visible, gpus, gib):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = this_machine()
    assert (machine.gpus, machine.gpu_gib) == (gpus, gib)
    asked = ray_resources(machine)
    assert (asked["num_cpus"], asked["num_gpus"]) == (machine.cpus, gpus)
