"""Why an actor has no place yet: what it asks for, against what the nodes of the cluster have.

Ray goes on looking for a place by itself, and its autoscaler sees an actor that waits as demand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import state  # the public ray.util.state asks a dashboard, which may not run
from ray.actor import ActorHandle

from configs.fleets import EngineConfig, FleetConfig
from configs.learner import LearnerConfig

ROUNDING = 1e-6
GIB = 1 << 30
WAITING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION")


@dataclass(frozen=True)
class Node:
    """A live node: its resources in Ray's units, and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]


def demand(config: FleetConfig) -> dict[str, float]:
    """What one actor of the fleet reserves, in Ray's names and units; nothing that is 0."""
    devices = config.tensor_parallel if isinstance(config, EngineConfig) else 1
    asked = {
        "CPU": config.cpus,
        "GPU": config.gpus * devices,
        "memory": config.memory_gib * GIB,
    }
    return {name: amount for name, amount in asked.items() if amount}


def lacking(actor: ActorHandle, config: FleetConfig) -> str | None:
    """Why an actor of the fleet has no place; None where it has one, or has died."""
    found: dict[str, Any] = state.actors(actor._actor_id.hex())
    # Ray calls an actor pending until its constructor has returned; its address tells.
    if found.get("State") not in WAITING or found["Address"]["IPAddress"]:
        return None
    return missing(config, _nodes(), ray.available_resources())


def lacking_ranks(config: LearnerConfig) -> str:
    """Why the learner's ranks have no place, which find theirs all at once or none."""
    rank = FleetConfig(cpus=config.cpus, gpus=config.gpus, labels=config.labels)
    return missing(rank, _nodes(), ray.available_resources(), config.ranks)


def _nodes() -> list[Node]:
    return [Node(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]]


def missing(
    config: FleetConfig, nodes: Sequence[Node], free: Mapping[str, float], actors: int = 1
) -> str:
    """What an actor of the fleet asks for and why it has no place, in half a sentence; or why so
    many have none at once. `free` are the cluster's resources that nobody has taken.
    """
    asked = demand(config)
    named = [node for node in nodes if _has_labels(node, config.labels)]
    amounts = [_amount(name, amount) for name, amount in asked.items()]
    wish = _listed([*amounts, *_labels(config.labels)]) or "nothing"
    who = "it asks" if actors == 1 else f"each of its {actors} ranks asks"
    reason = _reason(config, asked, nodes, named, free, actors)
    return f"{who} for {wish} on one node, and {reason}"


def _reason(
    config: FleetConfig,
    asked: Mapping[str, float],
    nodes: Sequence[Node],
    named: Sequence[Node],
    free: Mapping[str, float],
    actors: int,
) -> str:
    if not nodes:
        return "the cluster has no nodes"
    if not named:
        return f"no node has {_listed(_labels(config.labels))}"
    for name, amount in asked.items():
        most = max(node.resources.get(name, 0.0) for node in named)
        if most + ROUNDING < amount:
            which = "such node" if config.labels else "node"
            return f"no {which} has more than {_amount(name, most)}"
    taken = [name for name, one in asked.items() if free.get(name, 0.0) + ROUNDING < one * actors]
    if taken:
        left = _listed([_amount(name, free.get(name, 0.0)) for name in taken])
        return f"the cluster has {left} free"
    return "no node that has it in all has it free at once"


def _has_labels(node: Node, labels: Mapping[str, str]) -> bool:
    return all(node.labels.get(key) == value for key, value in labels.items())


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / GIB:.3g} GiB of memory"
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _labels(labels: Mapping[str, str]) -> list[str]:
    return [f"the label {key}={value}" for key, value in labels.items()]
