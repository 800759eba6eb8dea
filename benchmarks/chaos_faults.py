"""The faults of `make chaos`."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from benchmarks.chaos_stage import LEARNER, NotWellError, Stage
from benchmarks.measure import children

NODE_AWAY_S = 5.0
SLOW_S, SLOW_FOR_S = 0.3, 10.0
DISK_WAIT_S = 120.0

Struck = list[psutil.Process]
Blow = Callable[[Stage], Struck | None]
"""Strikes; returns the processes that must be gone for the run to be well, None where there was
nothing to strike or the run ended first."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    weight: int
    blow: Blow


def seconds_to_recover(stage: Stage, name: str) -> float | None:
    """Strike; the seconds from then until the run was well again.

    None where there was nothing to strike, or where the run ended before it was well, which shows
    nothing of what it would have done.
    """
    started = time.monotonic()
    struck = KINDS[name].blow(stage)
    if struck is None:
        return None
    stage.blows.append(name)
    return time.monotonic() - started if stage.becomes_well(struck) else None


def _signalled(name: str, number: signal.Signals) -> Blow:
    """A signal to one of the run's processes of that name."""

    def blow(stage: Stage) -> Struck | None:
        victims = stage.nodes.processes(name)
        if not victims:
            return None
        victim = stage.chance.choice(victims)
        try:
            victim.send_signal(number)
        except psutil.NoSuchProcess:
            return None
        return [victim]

    return blow


def _kill_driver(stage: Stage) -> Struck | None:
    """It is started again, as a cluster's job controller would."""
    if stage.driver.poll() is not None:
        return None
    stage.driver.kill()
    stage.driver.wait()
    return [stage.driver]


def _lose_node(stage: Stage) -> Struck:
    """The second node with all on it; another comes a while later."""
    node = stage.nodes.second
    processes = [node, *children(node)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
    time.sleep(NODE_AWAY_S)
    stage.nodes.join()
    return processes


def _slow_network(stage: Stage) -> Struck:
    """All that the second node's raylet and workers say to the head's GCS, and it to them, arrives
    late for a while. Calls between actors go past the proxy, and are as fast as ever."""
    stage.nodes.proxy.delay_s = SLOW_S
    try:
        time.sleep(SLOW_FOR_S)
    finally:
        stage.nodes.proxy.delay_s = 0.0
    return []


def _fill_disk(stage: Stage) -> Struck | None:
    """No room on the run's disk: the driver says so and ends; there is room again, and it is
    started again."""
    filler = stage.config.run_dir.with_suffix(".filler")
    before = stage.log.stat().st_size
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    try:
        code = stage.driver.wait(DISK_WAIT_S)
    finally:
        filler.unlink()
    if stage.ended:
        return None
    said = stage.log.read_bytes()[before:].decode("utf-8", "replace")
    if code not in (1, 2) or "Traceback" in said:
        raise NotWellError(f"on a full disk the driver ended with {code}: {said[-4000:]}")
    return [stage.driver]


KINDS = {
    "rollout_killed": Kind(18, _signalled("ray::RolloutActor", signal.SIGKILL)),
    "rollout_hung": Kind(18, _signalled("ray::RolloutActor", signal.SIGSTOP)),
    "judge_killed": Kind(8, _signalled("ray::QualityActor", signal.SIGKILL)),
    "judge_hung": Kind(6, _signalled("ray::QualityActor", signal.SIGSTOP)),
    "verifier_killed": Kind(12, _signalled("ray::VerifierActor", signal.SIGKILL)),
    "verifier_hung": Kind(10, _signalled("ray::VerifierActor", signal.SIGSTOP)),
    "learner_killed": Kind(8, _signalled(LEARNER, signal.SIGKILL)),
    "learner_hung": Kind(4, _signalled(LEARNER, signal.SIGSTOP)),
    "driver_killed": Kind(8, _kill_driver),
    "node_lost": Kind(4, _lose_node),
    "slow_network": Kind(3, _slow_network),
    "disk_full": Kind(3, _fill_disk),
}
"""By name, with how many of a hundred and two they are."""
ENDS_DRIVER = ("driver_killed", "disk_full")
"""Kinds after which the driver is started again."""
