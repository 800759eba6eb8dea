"""Real runs under a seeded schedule of faults: what is lost, what is doubled, how long it takes.

    make chaos
    python -m benchmarks.chaos --faults 12 --seed 1 --out /tmp/chaos.json
    python -m benchmarks.chaos --kinds disk_full node_lost --out /tmp/chaos.json

Two Ray nodes on this machine play the quickstart's game with two rollout actors. Each fault strikes
a run that is well, at a random moment; a run is well again when its driver answers, every fleet is
whole without the process that was struck, and an iteration has ended that began after the blow.
When all iterations of a run are played its ledger is checked, and the next one begins, with another
staleness, until all faults have struck. A fault that a run's end hides is not counted, and strikes
the next run again. Writes benchmarks/results/chaos.json, whatever happened. A full disk is one of
the faults, and needs a mount: run this as root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.chaos_faults import ENDS_DRIVER, KINDS, seconds_to_recover
from benchmarks.chaos_stage import Nodes, NotWellError, Stage, two_nodes
from benchmarks.local_cluster import TOKEN
from cluster.audit import check_ledger, counted_groups
from cluster.ledger import Ledger
from configs.load import load
from configs.schema import RunConfig
from playground.base_model import build

QUERIES, ANSWERS = 8, 4
ITERATIONS = 400
"""Of each run."""
STALENESS = (0, 1, 2)
DISK_MIB = 1500
PAUSE_S = 4.0
"""A fault strikes at most so long after the run is well."""
ROOM = 60
"""Iterations that a run must have left to show how it recovers."""
MISSES = 5
"""Strikes in a row that may hit nothing."""
MINUTES, LAST_MINUTES = 90.0, 8.0


def main() -> None:
    """Strike, check and write."""
    options = _options()
    if os.environ.get("RAY_AUTH_MODE") != "token":
        # Ray looks once, when it is imported.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        os.execve(sys.executable, sys.orig_argv, os.environ | token)
    schedule = options.kinds or schedule_of(options.faults, options.seed)
    chaos = Chaos(
        deque(schedule),
        options.iterations,
        random.Random(options.seed),
        options.staleness,
        options.minutes,
    )
    try:
        chaos.play()
    finally:
        game = {"queries": QUERIES, "answers": ANSWERS, "staleness": options.staleness}
        results = {"seed": options.seed, "game": game} | chaos.results()
        measure.write(options.out, results)
    if not is_sound(results):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--faults", type=int, default=102)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, help="these, in this order, instead")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--staleness", type=int, nargs="+", default=STALENESS, help="by turns")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "chaos.json")
    return parser.parse_args()


def schedule_of(faults: int, seed: int) -> list[str]:
    """The kinds of all faults in the order they strike, each as often as its weight says."""
    weights = {name: kind.weight for name, kind in KINDS.items()}
    whole = [name for name, weight in weights.items() for _ in range(weight)]
    random.Random(seed).shuffle(whole)
    return [whole[i % len(whole)] for i in range(faults)]


@dataclass
class Chaos:
    """Runs and their faults, and what has come of them until now; `left` are yet to strike."""

    left: deque[str]
    iterations: int
    chance: random.Random
    staleness: Sequence[int] = STALENESS
    """Of the runs, by turns."""
    minutes: float = MINUTES
    """All is over after so many, and in the last `LAST_MINUTES` nothing strikes any more."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> float:
        """Minutes since the beginning."""
        return (time.monotonic() - self.started) / 60

    def play(self) -> None:
        """Play runs until all faults have struck, one has done harm, or time is over."""
        model = build(0, Path("runs/base-models"))
        with two_nodes() as nodes, disk() as folder, scratch() as logs:
            if not os.path.ismount(folder) and "disk_full" in self.left:
                sys.exit("a full disk needs a disk of its own: run this as root")
            while self._strikes and not self.violations:
                number = len(self.runs)
                staleness = self.staleness[number % len(self.staleness)]
                run_dir = folder / f"run-{number}"
                config = config_of(run_dir, model, staleness, self.iterations)
                log = logs / f"run-{number}.log"
                try:
                    self._run(nodes, config, log)
                except Exception as error:  # noqa: BLE001 (what has been seen is written all the same)
                    told = log.read_text("utf-8", "replace")[-3000:] if log.is_file() else ""
                    self.violations.append(f"run {number}: {error!r}; it said: {told}")
                    return
                shutil.rmtree(run_dir)

    @property
    def _strikes(self) -> bool:
        return bool(self.left) and self.passed < self.minutes - LAST_MINUTES

    def _run(self, nodes: Nodes, config: RunConfig, log: Path) -> None:
        """One run, to its end."""
        ends_at = self.started + 60 * self.minutes
        with Stage(nodes, config, self.chance, log, ends_at) as stage:
            self._strike(stage)
            code = stage.wait_until_ended()
        run = outcome(config)
        run |= {"struck": stage.blows, "drivers_ended": stage.ends}
        run["violations"] += ends_without_cause(stage.blows, stage.ends, code)
        self.runs.append(run)
        self.violations += run["violations"]
        print(f"run {len(self.runs) - 1}: {run}", flush=True)

    def _strike(self, stage: Stage) -> None:
        """Strike with those that are left, one by one, while the run has room for it."""
        misses = 0
        while self._strikes and stage.becomes_well([]):
            time.sleep(self.chance.uniform(0, PAUSE_S))
            if not stage.plays_on(ROOM):
                return
            kind = self.left[0]
            took = seconds_to_recover(stage, kind)
            if took is not None:
                misses = 0
                self.seconds.setdefault(self.left.popleft(), []).append(took)
                at = f"{self.passed:5.1f} min  run {len(self.runs)}"
                print(f"{at}  {stage.trained:3}  {kind:<16} {took:6.1f} s", flush=True)
            elif (misses := misses + 1) >= MISSES:
                raise NotWellError(f"{misses} strikes of {kind} in a row have hit nothing")

    def results(self) -> dict[str, Any]:
        """The figures of all runs that have ended, and of all faults they have survived."""
        keys = ("iterations_asked", "iterations_done", "groups_lost", "groups_doubled")
        return {
            "faults": {kind: len(took) for kind, took in sorted(self.seconds.items())},
            **{key: sum(run[key] for run in self.runs) for key in keys},
            "violations": self.violations,
            "not_struck": len(self.left),
            "seconds_to_recover": {
                kind: {"median": statistics.median(took), "max": max(took), "samples": took}
                for kind, took in sorted(self.seconds.items())
            },
            "runs": self.runs,
            "minutes": self.passed,
        }


def is_sound(results: dict[str, Any]) -> bool:
    """Whether all have struck, and nothing is lost, doubled or otherwise wrong."""
    wrong = ("violations", "not_struck", "groups_lost", "groups_doubled")
    whole = results["iterations_done"] == results["iterations_asked"]
    return whole and not any(results[key] for key in wrong)


def ends_without_cause(struck: list[str], ends: list[int], code: int) -> list[str]:
    """A violation where drivers ended that nothing had struck, or the last one not in order."""
    due, said = sum(kind in ENDS_DRIVER for kind in struck), []
    if len(ends) > due:
        said.append(f"drivers ended with {ends}, and {due} of them were struck")
    return [*said, f"the last driver ended with {code}"] if code else said


def config_of(run_dir: Path, model: Path, staleness: int, iterations: int) -> RunConfig:
    """The quickstart's game, smaller, with deadlines that fit it; it forgives what any run does."""
    fleets = ("rollout", "rewards.quality.fleet", "rewards.parts.0.fleet")
    impatient = [f"{fleet}.silence_s=6" for fleet in fleets]
    return load(
        Path("configs/quickstart.yaml"),
        [
            f"run_dir={run_dir}",
            "model.make=null",
            f"model.path={model.absolute()}",
            f"queries={QUERIES}",
            f"answers={ANSWERS}",
            f"staleness={staleness}",
            f"iterations={iterations}",
            "heldout=null",
            "rollout.replicas=2",
            "checkpoint.every=10",
            "learner.step_deadline_s=20",
            *impatient,
        ],
    )


def outcome(config: RunConfig) -> dict[str, Any]:
    """What a run that has ended has to show."""
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    lost, doubled = counted_groups(config.run_dir, queries=QUERIES)
    violations = check_ledger(config.run_dir, answers=ANSWERS, staleness=config.staleness)
    kept = set(Ledger(config.run_dir).read(["iteration"])["iteration"].to_pylist())
    if kept != set(range(config.iterations)):
        violations.append(f"the ledger holds {len(kept)} iterations of {config.iterations}")
    return {
        "staleness": config.staleness,
        "iterations_asked": config.iterations,
        "iterations_done": len({json.loads(line)["iteration"] for line in lines}),
        "groups_lost": lost,
        "groups_doubled": doubled,
        "violations": violations,
    }


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder on another disk."""
    with tempfile.TemporaryDirectory(prefix="chaos-logs-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def disk() -> Iterator[Path]:
    """A small disk of its own for the runs, a folder where it cannot be mounted."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", folder]
        mounted = subprocess.run(["mount", *options], check=False).returncode == 0
        try:
            yield Path(folder)
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", folder], check=True)


if __name__ == "__main__":
    main()
