"""`selfplay plan`: where the actors fit and what memory they take, before any GPU is taken."""

from __future__ import annotations

import logging
import os
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.inputs import check_inputs
from cluster.memory import (
    Parts,
    classifier_parts,
    engine_parts,
    learner_parts,
    measure,
    resting_gib,
)
from cluster.placement import ClusterConfig, NodeConfig, NoRoomError, Seat, demands, place
from cluster.token import unreachable
from configs.errors import UserError
from configs.fleets import EngineConfig
from configs.load import read_yaml, validate
from configs.schema import RunConfig

COLOCATED_ENGINES = "rollout"
"""The fleet that sleeps while a colocated learner trains."""


@dataclass(frozen=True)
class _Gpu:
    """A GPU of this machine as the driver knows it."""

    index: str
    uuid: str
    gib: float


@dataclass(frozen=True)
class Load:
    """Memory of one GPU (or of one node's main memory): GiB needed at the worst moment."""

    name: str
    actors: tuple[str, ...]
    needed: float
    capacity: float


@dataclass(frozen=True)
class Plan:
    """A run's placement; memory is None for a model that is made when the run starts."""

    config: RunConfig
    nodes: tuple[NodeConfig, ...]
    seats: tuple[Seat, ...]
    parameters: int | None
    parts: dict[str, Parts]
    host_parts: dict[str, Parts]
    loads: tuple[Load, ...]


def check_beginning(config: RunConfig) -> str | None:
    """Check that a run can begin where this process is; the sentence on what has no place yet, if
    anything.

    On a cluster, which may get more nodes, that takes the learner and one actor of each fleet; a
    Ray of the run's own has room for all or never will. Raises UserError as `make_plan`.
    """
    live = _live_nodes()
    try:
        make_plan(config, live or [this_machine()])
    except NoRoomError as lack:
        if not live:
            raise
        make_plan(config, live, least=True)
        return f"{lack}. The run begins with the actors that have a place; the others join later"
    return None


def make_plan(config: RunConfig, nodes: Sequence[NodeConfig], *, least: bool = False) -> Plan:
    """Place a run's actors on `nodes` and estimate their memory; check what the run reads. `least`:
    the learner and one actor of each fleet.

    Raises UserError naming the fleet, key, file or node where something does not fit.
    """
    seats = place(demands(config, least=least), nodes)
    model = config.model
    size = None
    if model.path:
        size = measure("model.path", model.path, model.revision, model.trust_remote_code)
    check_inputs(config)
    if size is None:
        return Plan(config, tuple(nodes), tuple(seats), None, {}, {}, ())
    capacity = {node.name: node.gpu_gib for node in nodes}
    smallest = {
        seat.demand.fleet: min(
            capacity[s.node] for s in seats if s.demand.fleet == seat.demand.fleet
        )
        for seat in seats
    }
    device, host = learner_parts(config.learner, size, kl=config.learner.kl.has_reference)
    parts, host_parts = {"learner": device}, {"learner": host}
    sizes = {
        f"reward_{part.name}": measure(f"rewards.parts.{part.name}.model", part.model, reward=True)
        for part in config.preference_parts
    }
    for name, fleet in config.fleets.items():
        if isinstance(fleet, EngineConfig):
            parts[name] = engine_parts(name, fleet, sizes.get(name, size), smallest[name])
    safety = config.gate.safety
    if safety is not None:
        key, trust = "gate.safety.model", safety.trust_remote_code
        classifier = measure(key, safety.model, safety.revision, trust, reward=True)
        parts["safety"] = classifier_parts(safety, classifier)
    loads = _loads(config, nodes, seats, parts, host_parts)
    for load in loads:
        _check(load)
    return Plan(
        config, tuple(nodes), tuple(seats), size.parameters, parts, host_parts, tuple(loads)
    )


def _check(load: Load) -> None:
    if load.needed > load.capacity:
        raise UserError(
            f"{load.name} has {load.capacity:.1f} GiB and {', '.join(load.actors)} need about"
            f" {load.needed:.1f}: raise learner.ranks or learner.zero_stage, set learner.offload or"
            " learner.gradient_checkpointing, lower learner.micro_batch_tokens or an engine's"
            " memory_fraction"
        )


def _loads(
    config: RunConfig,
    nodes: Sequence[NodeConfig],
    seats: Sequence[Seat],
    parts: dict[str, Parts],
    host_parts: dict[str, Parts],
) -> list[Load]:
    on_device: dict[tuple[str, int], list[Seat]] = defaultdict(list)
    on_host: dict[str, list[Seat]] = defaultdict(list)
    for seat in seats:
        on_host[seat.node].append(seat)
        for device in seat.devices:
            on_device[seat.node, device].append(seat)
    loads = []
    for node in nodes:
        for device in range(node.gpus):
            here = on_device[node.name, device]
            names = tuple(seat.demand.name for seat in here)
            needed = _worst(config, [seat.demand.fleet for seat in here], parts)
            loads.append(Load(f"{node.name} GPU {device}", names, needed, node.gpu_gib))
        here = on_host[node.name]
        names = tuple(seat.demand.name for seat in here)
        needed = sum(_host_gib(seat, parts, host_parts) for seat in here)
        loads.append(Load(f"{node.name} main memory", names, needed, node.memory_gib))
    return loads


def _worst(config: RunConfig, fleets: Sequence[str], parts: dict[str, Parts]) -> float:
    """GiB that these actors take of one GPU at the worst moment.

    Colocated, either the learner works and the rollout engines sleep, or it rests and they play.
    """
    together = sum(sum(parts[fleet].values()) for fleet in fleets)
    if not config.colocate or "learner" not in fleets:
        return together
    learner = parts["learner"]
    learning = together - sum(
        sum(parts[fleet].values()) for fleet in fleets if fleet == COLOCATED_ENGINES
    )
    playing = together - sum(learner.values()) + resting_gib(learner)
    return max(learning, playing)


def _host_gib(seat: Seat, parts: dict[str, Parts], host_parts: dict[str, Parts]) -> float:
    fleet = seat.demand.fleet
    offloaded = sum(host_parts.get(fleet, {}).values())
    on_cpu = sum(parts.get(fleet, {}).values()) if not seat.devices else 0.0
    return offloaded + on_cpu


def render(plan: Plan) -> str:
    """The plan as a person reads it."""
    return "\n".join([*_model_lines(plan), "", *_placement_lines(plan), "", *_memory_lines(plan)])


def _model_lines(plan: Plan) -> list[str]:
    model = plan.config.model
    name = model.path or f"made by {model.make}"
    size = f", {plan.parameters / 1e9:.2f} billion parameters" if plan.parameters else ""
    per_iteration = plan.config.queries * plan.config.answers
    return [
        f"Model      {name}{size}",
        f"Game       {plan.config.algorithm}: {plan.config.queries} queries ×"
        f" {plan.config.answers} answers = {per_iteration} answers per iteration,"
        f" {plan.config.iterations} iterations",
    ]


def _placement_lines(plan: Plan) -> list[str]:
    lines = [f"{'Actor':<24}{'Node':<20}{'GPU':<18}CPUs"]
    for seat in plan.seats:
        share = seat.demand.gpus
        devices = ", ".join(map(str, seat.devices))
        gpu = f"{devices} (share {share:g})" if devices and share < 1 else devices or "–"
        lines.append(f"{seat.demand.name:<24}{seat.node:<20}{gpu:<18}{seat.demand.cpus:g}")
    return lines


def _memory_lines(plan: Plan) -> list[str]:
    if plan.parameters is None:
        return [
            "Memory     not estimated and not checked: the model is made when the run starts, and"
            " its size is known only then"
        ]
    lines = ["Memory of one actor, GiB (estimated)"]
    for fleet, parts in plan.parts.items():
        lines.append(f"  {fleet:<22}{_sum(parts)}")
        if plan.host_parts.get(fleet):
            lines.append(f"  {'  in main memory':<22}{_sum(plan.host_parts[fleet])}")
    lines += ["", f"{'Memory at the worst moment, GiB':<44}{'needed':>8}{'of':>8}"]
    for load in plan.loads:
        if load.needed:
            lines.append(f"  {load.name:<42}{load.needed:>8.1f}{load.capacity:>8.1f}")
    return lines


def _sum(parts: Parts) -> str:
    terms = " + ".join(f"{name} {gib:.1f}" for name, gib in parts.items() if gib >= 0.05)
    return f"{sum(parts.values()):.1f} = {terms}"


def nodes_from(cluster: Path | None) -> tuple[str, list[NodeConfig]]:
    """What a plan is made for: a described cluster, else the Ray cluster that this process belongs
    to (by RAY_ADDRESS, as in a submitted job), else this machine."""
    if cluster is not None:
        described = validate(ClusterConfig, read_yaml(cluster), lambda _: str(cluster))
        return str(cluster), described.machines()
    live = _live_nodes()
    return ("the running Ray cluster", live) if live else ("this machine", [this_machine()])


def ray_resources(machine: NodeConfig) -> dict[str, int]:
    """What `ray.init` is told of this machine, so that Ray gives out what the plan counted."""
    memory = int(machine.for_actors_gib * 2**30)
    return {"num_cpus": int(machine.cpus), "num_gpus": machine.gpus, "_memory": memory}


def this_machine() -> NodeConfig:
    """The node this process runs on, with the CPUs and NVIDIA GPUs that it may use; takes none."""
    return _machine(_visible(_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")))


def _whole_machine() -> NodeConfig:
    """The node with all its GPUs: Ray hides them from a task that reserves none."""
    return _machine(_gpus())


def _machine(gpus: Sequence[_Gpu]) -> NodeConfig:
    import psutil  # noqa: PLC0415

    memory = [gpu.gib for gpu in gpus]
    return NodeConfig(
        name=os.uname().nodename,
        gpus=len(memory),
        gpu_gib=min(memory, default=0.0),
        cpus=len(os.sched_getaffinity(0)),
        memory_gib=psutil.virtual_memory().total / 2**30,
    )


def _visible(gpus: Sequence[_Gpu], setting: str | None) -> list[_Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; None where it is not set.

    Its ids are indices or (the first letters of) UUIDs; as CUDA has it, an id that no GPU has
    hides itself and whatever follows.
    """
    if setting is None:
        return list(gpus)
    found: list[_Gpu] = []
    for name in filter(None, (part.strip() for part in setting.split(","))):
        # The driver's list has no slices; a slice has at most the memory of a GPU.
        slices = [gpu for gpu in gpus if name.startswith("MIG-")]
        named = [gpu for gpu in gpus if name == gpu.index or _starts(gpu.uuid, name)] or slices
        if not named:
            break
        found.append(min(named, key=lambda gpu: gpu.gib))
    return found


def _starts(uuid: str, name: str) -> bool:
    return name.startswith("GPU-") and uuid.startswith(name)


def _gpus() -> list[_Gpu]:
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    rows = (line.split(", ") for line in done.stdout.splitlines())
    return [_Gpu(index, uuid, float(mib) / 1024) for index, uuid, mib in rows]


def _live_nodes() -> list[NodeConfig]:
    """The nodes of the Ray cluster this process belongs to, each asked for what it is.

    Empty where it belongs to none: a run then starts a Ray of its own, whoever else's runs here.
    """
    import ray  # noqa: PLC0415
    from ray.exceptions import AuthenticationError  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    connected = ray.is_initialized()
    if not connected and "RAY_ADDRESS" not in os.environ:
        return []
    if not connected:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
            raise unreachable(f"RAY_ADDRESS {os.environ['RAY_ADDRESS']}", error) from error
    try:
        describe = ray.remote(num_cpus=0)(_whole_machine)
        alive = [node for node in ray.nodes() if node["Alive"]]
        found = [
            describe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in alive
        ]
        machines = ray.get(found, timeout=60)
    finally:
        if not connected:
            ray.shutdown()
    return [
        machine.model_copy(
            update={
                "name": f"{node['NodeManagerHostname']}-{node['NodeID'][:6]}",
                "cpus": node["Resources"].get("CPU", 0.0),
                "gpus": int(node["Resources"].get("GPU", 0)),
                "reservable_gib": node["Resources"].get("memory", 0.0) / 2**30,
                "labels": node["Labels"],
            }
        )
        for node, machine in zip(alive, machines, strict=True)
    ]
