"""Which actor fits where: a pure packing of a run's actors onto described nodes.

Invariants: a tensor-parallel engine stays on one node; learner ranks have GPUs of their own among
themselves (NCCL refuses two ranks on one GPU); nothing is given more than a node has. Ray decides
the real placement; this shows that one exists, and which.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, model_validator

from configs.base import Config, Label
from configs.errors import UserError
from configs.fleets import EngineConfig, FleetConfig
from configs.schema import RunConfig

OBJECT_STORE_SHARE = 0.3
"""Of a node's memory, which `ray start` gives to the object store by default."""
ROUNDING = 1e-6
"""Shares of a GPU are decimal fractions: three times 0.1 and 0.7 fill it."""


class NoRoomError(UserError):
    """The nodes have no room for an actor."""


class NodeConfig(Config):
    """A machine, or several equal ones."""

    name: str
    """Its name in the plan."""
    count: int = Field(default=1, ge=1)
    """How many such machines."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of each."""
    gpu_gib: float = Field(default=0.0, ge=0)
    """GiB of memory of each GPU."""
    cpus: float = Field(ge=0)
    """CPUs of each, as Ray counts them."""
    memory_gib: float = Field(gt=0)
    """GiB of main memory of each."""
    reservable_gib: float | None = Field(default=None, ge=0)
    """GiB of it that Ray gives to actors which ask for memory; null: what is left beside its object
    store, 0.7 of `memory_gib`."""
    labels: dict[Label, Label] = Field(default_factory=dict)
    """Labels of each, as `ray start --labels` gives them."""

    @property
    def for_actors_gib(self) -> float:
        """GiB that actors can reserve."""
        left = self.memory_gib * (1 - OBJECT_STORE_SHARE)
        return left if self.reservable_gib is None else self.reservable_gib


class ClusterConfig(Config):
    """The machines a plan is made for."""

    nodes: list[NodeConfig] = Field(min_length=1)
    """The machines."""

    @model_validator(mode="after")
    def _names_differ(self) -> ClusterConfig:
        names = [machine.name for machine in self.machines()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two nodes are named {twice[0]!r}; give each its own name")
        return self

    def machines(self) -> list[NodeConfig]:
        """One entry per machine, the equal ones numbered."""
        return [
            node if node.count == 1 else node.model_copy(update={"name": f"{node.name}-{i}"})
            for node in self.nodes
            for i in range(node.count)
        ]


@dataclass(frozen=True, slots=True)
class Demand:
    """What one actor reserves: `devices` GPUs with a share `gpus` of each, CPUs and main memory,
    on a node with these labels."""

    name: str
    fleet: str
    cpus: float
    gpus: float
    devices: int = 1
    memory_gib: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def total_gpus(self) -> float:
        """GPUs it takes in all."""
        return self.gpus * self.devices


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one actor fits; `devices` are GPU numbers of the node, empty on CPU."""

    demand: Demand
    node: str
    devices: tuple[int, ...]


@dataclass(slots=True)
class _Room:
    """What is left of one node."""

    node: NodeConfig
    cpus: float
    memory_gib: float
    gpus: list[float]
    learners: set[int] = field(default_factory=set)


def demands(config: RunConfig, *, least: bool = False) -> list[Demand]:
    """Every actor of a run, learner ranks first, then the fleets; `least`: one of each fleet."""
    learner = config.learner
    ranks = [
        Demand(f"learner {rank}", "learner", learner.cpus, learner.gpus, labels=learner.labels)
        for rank in range(learner.ranks)
    ]
    return ranks + list(
        itertools.chain.from_iterable(
            _members(name, fleet, 1 if least else fleet.replicas)
            for name, fleet in config.fleets.items()
        )
    )


def _members(name: str, fleet: FleetConfig, replicas: int) -> Iterator[Demand]:
    devices = fleet.tensor_parallel if isinstance(fleet, EngineConfig) else 1
    if fleet.gpus > 1:
        raise UserError(
            f"fleet {name}: gpus {fleet.gpus:g} is per tensor-parallel rank, so at most 1: set"
            " tensor_parallel to spread an engine over GPUs"
        )
    if devices > 1 and fleet.gpus != 1:
        raise UserError(f"fleet {name}: tensor_parallel {devices} needs gpus 1 for each rank")
    for i in range(replicas):
        of_each = (fleet.cpus, fleet.gpus, devices, fleet.memory_gib, fleet.labels)
        yield Demand(f"{name} {i}", name, *of_each)


def place(wanted: Sequence[Demand], nodes: Sequence[NodeConfig]) -> list[Seat]:
    """A seat for every demand, in their order; the learner's ranks together where that fits.

    Raises NoRoomError where the nodes have too few GPUs or CPUs in all, or none has room for one.
    """
    _check_totals(wanted, nodes)
    with contextlib.suppress(NoRoomError):
        return _placed(wanted, nodes, together=True)
    return _placed(wanted, nodes, together=False)


def _placed(wanted: Sequence[Demand], nodes: Sequence[NodeConfig], *, together: bool) -> list[Seat]:
    rooms = [_Room(node, node.cpus, node.for_actors_gib, [1.0] * node.gpus) for node in nodes]
    # The hardest to seat first: those with a kind of node of their own, learner ranks, then by
    # GPUs, memory and CPUs.
    order = sorted(wanted, key=_hardness)
    seats = {demand.name: _seat(demand, rooms, together) for demand in order}
    return [seats[demand.name] for demand in wanted]


def _hardness(demand: Demand) -> tuple[Any, ...]:
    sizes = (-demand.total_gpus, -demand.memory_gib, -demand.cpus)
    return (not demand.labels, demand.fleet != "learner", *sizes)


def _check_totals(wanted: Sequence[Demand], nodes: Sequence[NodeConfig]) -> None:
    for unit, has, asks in (
        ("GPUs", float(sum(n.gpus for n in nodes)), lambda d: d.total_gpus),
        ("CPUs", sum(n.cpus for n in nodes), lambda d: d.cpus),
    ):
        needs = sum(asks(d) for d in wanted)
        if needs > has + ROUNDING:
            fleets = itertools.groupby(wanted, key=lambda d: d.fleet)
            parts = [(fleet, sum(asks(d) for d in members)) for fleet, members in fleets]
            listing = ", ".join(f"{fleet} {amount:g}" for fleet, amount in parts if amount)
            raise NoRoomError(
                f"the run asks for {needs:g} {unit} ({listing}) and the cluster has {has:g}: lower"
                f" replicas, ranks or {unit.lower()} of those, or add nodes"
            )


def _seat(demand: Demand, rooms: Sequence[_Room], together: bool) -> Seat:
    fitting = [
        (room, devices)
        for room in rooms
        if _fits(demand, room) and (devices := _devices(demand, room)) is not None
    ]
    if not fitting:
        raise NoRoomError(_unseated(demand))
    in_order = together and demand.fleet == "learner"
    room, devices = min(fitting, key=lambda pair: _roominess(pair[0], in_order))
    room.cpus -= demand.cpus
    room.memory_gib -= demand.memory_gib
    for device in devices:
        room.gpus[device] -= demand.gpus
    if demand.fleet == "learner":
        room.learners |= set(devices)
    return Seat(demand, room.node.name, devices)


def _fits(demand: Demand, room: _Room) -> bool:
    return (
        demand.labels.items() <= room.node.labels.items()
        and demand.cpus <= room.cpus + ROUNDING
        and demand.memory_gib <= room.memory_gib + ROUNDING
    )


def _roominess(room: _Room, in_order: bool) -> tuple[float, ...]:
    """How much a demand would leave unused: labels that others ask for, then what is left.

    `in_order` takes the nodes as they come, so that equal demands stay together.
    """
    left = () if in_order else (sum(room.gpus), room.memory_gib, room.cpus)
    return (len(room.node.labels), *left)


def _unseated(demand: Demand) -> str:
    asked = [f"{demand.devices} × {demand.gpus:g} GPU"] * (demand.gpus > 0)
    asked += [f"{demand.cpus:g} CPUs"]
    asked += [f"{demand.memory_gib:g} GiB of memory"] * (demand.memory_gib > 0)
    labels = ", ".join(f"{key}={value}" for key, value in demand.labels.items())
    kind = f" labelled {labels}" if labels else ""
    return (
        f"{demand.name} needs {' and '.join(asked)} on one node{kind}, and no node{kind} has that"
        " left beside the other actors"
    )


def _devices(demand: Demand, room: _Room) -> tuple[int, ...] | None:
    """The fullest GPUs with room for the demand, None where there are too few."""
    if demand.gpus == 0:
        return ()
    taken = room.learners if demand.fleet == "learner" else set()
    free = [
        i for i, left in enumerate(room.gpus) if left + ROUNDING >= demand.gpus and i not in taken
    ]
    free.sort(key=lambda i: room.gpus[i])
    return tuple(free[: demand.devices]) if len(free) >= demand.devices else None
