"""Real runs under a seeded schedule of faults: what is lost, what is doubled, how long it takes.

    make chaos
    python -m benchmarks.chaos --faults 12 --seed 1

Two Ray nodes on this machine play the quickstart's game with two rollout actors. Each fault strikes
a run that is well, at a random moment; a run is well again when its driver answers, every fleet is
whole without the process that was struck, and an iteration has ended that had not before. When all
iterations of a run are played its ledger is checked, and the next one begins, with another
staleness, until all faults have struck. Writes benchmarks/results/chaos.json. A full disk is one of
the faults, and needs a mount: run this as root.
"""

from __future__ import annotations

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
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.chaos_faults import ENDS_DRIVER, KINDS, Stage
from benchmarks.local_cluster import running_head
from cluster.audit import check_ledger, counted_groups
from cluster.ledger import Ledger
from configs.load import load
from configs.schema import RunConfig
from playground.base_model import build

QUERIES, ANSWERS = 8, 4
ITERATIONS = 150
"""Of each run."""
STALENESS = (0, 1, 2)
DISK_MIB = 1500
PAUSE_S = 4.0
"""A fault strikes at most so long after the run is well."""


def main() -> None:
    """Strike, check and write."""
    parser = measure.parser(__doc__)
    parser.add_argument("--faults", type=int, default=102)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    schedule = schedule_of(options.faults, options.seed)
    game = {"queries": QUERIES, "answers": ANSWERS, "staleness": STALENESS}
    results: dict[str, Any] = {"seed": options.seed, "game": game}
    results |= played(schedule, options.iterations, random.Random(options.seed))
    measure.write(measure.RESULTS / "chaos.json", results)
    whole = results["iterations_done"] == results["iterations_asked"]
    if results["violations"] or results["groups_lost"] or results["groups_doubled"] or not whole:
        sys.exit(1)


def schedule_of(faults: int, seed: int) -> list[str]:
    """The kinds of all faults in the order they strike, each as often as its weight says."""
    weights = {name: kind.weight for name, kind in KINDS.items()}
    whole = [name for name, weight in weights.items() for _ in range(weight)]
    random.Random(seed).shuffle(whole)
    return [whole[i % len(whole)] for i in range(faults)]


def played(schedule: list[str], iterations: int, chance: random.Random) -> dict[str, Any]:
    """Play runs until all faults have struck; return what came of it."""
    seconds: dict[str, list[float]] = defaultdict(list)
    runs: list[dict[str, Any]] = []
    model = build(0, Path("runs/base-models"))
    left = deque(schedule)
    started = time.monotonic()
    violations: list[str] = []
    with running_head() as head, disk() as folder, scratch() as logs:
        os.environ.update(head.environment, RAY_AUTH_MODE="token", RAY_ADDRESS=head.gcs)
        mounted = os.path.ismount(folder)
        if not mounted and "disk_full" in left:
            sys.exit("a full disk needs a disk of its own: run this as root")
        while left and not violations:
            number = len(runs)
            staleness = STALENESS[number % len(STALENESS)]
            config = config_of(folder / f"run-{number}", model, staleness, iterations)
            log = logs / f"run-{number}.log"
            struck: list[str] = []
            with Stage(head, config, chance, log) as stage:
                try:
                    for kind, took in faults(stage, left, chance):
                        struck.append(kind)
                        seconds[kind].append(took)
                        at = f"{(time.monotonic() - started) / 60:5.1f} min  run {number}"
                        print(f"{at}  {kind:<16} {took:6.1f} s", flush=True)
                    code = stage.wait_until_ended()
                except (AssertionError, subprocess.TimeoutExpired) as error:
                    # What has been seen until now is written all the same.
                    told = log.read_text("utf-8")[-2000:]
                    violations.append(f"run {number}, after {struck}: {error!r}; it said: {told}")
                    break
            runs.append(outcome(config.run_dir, staleness, iterations))
            runs[-1]["drivers_ended"] = stage.ends
            runs[-1]["violations"] += ends_without_cause(struck, stage.ends, code)
            print(f"run {number}: {runs[-1]}", flush=True)
            shutil.rmtree(config.run_dir)
    results = summed_up(runs, seconds)
    results["violations"] += violations
    return results | {"minutes": (time.monotonic() - started) / 60}


def faults(stage: Stage, left: deque[str], chance: random.Random) -> Iterator[tuple[str, float]]:
    """Strike with those that are left, one by one, until the run has ended: each kind, and the
    seconds it took the run to be well."""
    while left and stage.is_well_after(chance.uniform(0, PAUSE_S)):
        took = KINDS[left[0]].strike(stage)
        if took is not None:
            yield left.popleft(), took


def ends_without_cause(struck: list[str], ends: list[int], code: int) -> list[str]:
    """A violation where drivers ended that nothing had struck, or the last one not in order."""
    due, said = sum(kind in ENDS_DRIVER for kind in struck), []
    if len(ends) > due:
        said.append(f"drivers ended with {ends}, and {due} of them were struck")
    return [*said, f"the last driver ended with {code}"] if code else said


def config_of(run_dir: Path, model: Path, staleness: int, iterations: int) -> RunConfig:
    """The quickstart's game, smaller, with deadlines that fit it and no end of restarts."""
    fleets = ("rollout", "rewards.quality.fleet", "rewards.parts.0.fleet")
    patient = [f"{fleet}.{key}" for fleet in fleets for key in ("restarts=1000", "silence_s=10")]
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
            "learner.step_deadline_s=40",
            "faults.learner_losses=1000",
            *patient,
        ],
    )


def outcome(run_dir: Path, staleness: int, iterations: int) -> dict[str, Any]:
    """What a run that has ended has to show."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    lost, doubled = counted_groups(run_dir, queries=QUERIES)
    violations = check_ledger(run_dir, answers=ANSWERS, staleness=staleness)
    kept = set(Ledger(run_dir).read(["iteration"])["iteration"].to_pylist())
    if kept != set(range(iterations)):
        violations.append(f"the ledger holds {len(kept)} iterations of {iterations}")
    return {
        "staleness": staleness,
        "iterations_asked": iterations,
        "iterations_done": len({json.loads(line)["iteration"] for line in lines}),
        "groups_lost": lost,
        "groups_doubled": doubled,
        "violations": violations,
    }


def summed_up(runs: list[dict[str, Any]], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The figures of all runs together."""
    keys = ("iterations_asked", "iterations_done", "groups_lost", "groups_doubled")
    return {
        "faults": {kind: len(took) for kind, took in sorted(seconds.items())},
        **{key: sum(run[key] for run in runs) for key in keys},
        "violations": [said for run in runs for said in run["violations"]],
        "seconds_to_recover": {
            kind: {"median": statistics.median(took), "max": max(took), "samples": took}
            for kind, took in sorted(seconds.items())
        },
        "runs": runs,
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
