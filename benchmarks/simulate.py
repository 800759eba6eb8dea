"""The real game in virtual time: what staleness k is worth on fleets of 8 to 1,024 engines.

    python -m benchmarks.simulate [--members 8 64 …] [--staleness 0 1 …] [--seed 0] [--only table]

The game, its rounds, the Challenger's source, the gate, the players, the fleets with their
restarts, the staleness rule, the seeds and the record are the real ones. Engines, judges,
verifiers, weights and the learner only take time (`benchmarks.simulated`), and the clock jumps
over it (`benchmarks.virtual_time`). The batch grows with the fleet: N queries for N engines.

In virtual time the driver costs nothing, and a remote call has no latency. What the driver costs
is measured by itself, in real seconds (`benchmarks.driver_cost`). What Ray costs for each call is
in neither.

Every line is checked: each slot of each round was trained exactly once, with the answers that its
seeds give, and no sequence was handed over twice. All goes to benchmarks/results/simulation.json.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict
from typing import Any

from benchmarks import driver_cost, measure
from benchmarks.simulated import Failures, Times
from benchmarks.simulation import Line, simulate

MEMBERS = (8, 64, 256, 1024)
STALENESS = (0, 1, 2, 4)
GROUPS = 2048
"""Groups that a line of the table measures, where that takes a number of iterations in …"""
ITERATIONS = (6, 64)
NOT_IN_IT = (
    "Times are virtual and the cluster is invented (`assumed`); in them the driver costs nothing."
    " `driver` is real CPU time. What Ray costs for each remote call is in neither."
)


def main() -> None:
    """Simulate, measure, print and write."""
    parser = measure.parser(__doc__)
    parser.add_argument("--members", type=int, nargs="*", default=MEMBERS)
    parser.add_argument("--staleness", type=int, nargs="*", default=STALENESS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("table", "driver"), nargs="*")
    options = parser.parse_args()
    wanted = options.only or ("table", "driver")
    results: dict[str, Any] = {"about": NOT_IN_IT}
    if "table" in wanted:
        results["assumed"] = {"times": asdict(Times()), "failures": asdict(Failures())}
        results["table"] = [asdict(line) for line in table(options)]
    if "driver" in wanted:
        results["driver"] = driver_cost.measured()
    print(NOT_IN_IT)
    measure.write(measure.RESULTS / "simulation.json", results, options.only)


def table(options: argparse.Namespace) -> list[Line]:
    """All lines, printed as they come."""
    lines = []
    print(HEAD)
    for members in options.members:
        iterations = min(max(GROUPS // members, ITERATIONS[0]), ITERATIONS[1])
        for failures in (None, Failures()):
            for staleness in options.staleness:
                line, _ = simulate(
                    *(members, staleness, iterations), failures=failures, seed=options.seed
                )
                lines.append(line)
                print(row(line), flush=True)
    return lines


HEAD = (
    "members  k failing | groups/s  tokens/s | learner idle | engines idle updating down  batch |"
    " staleness mean max end | spanning max | died hung redone"
)


def row(line: Line) -> str:
    """A line for people; shares in per cent."""
    return (
        f"{line.members:7} {line.staleness:2} {'yes' if line.failures else 'no':>7} |"
        f" {line.groups_per_s:8.2f} {line.tokens_per_s:9.0f} | {100 * line.learner_idle:12.1f} |"
        f" {100 * line.engines_idle:12.1f} {100 * line.engines_updating:8.1f}"
        f" {100 * line.engines_down:4.1f} {line.batch:6.1f} |"
        f" {line.staleness_mean:14.2f} {line.staleness_max:3} {line.staleness_at_end:3.1f} |"
        f" {100 * line.spanned:8.1f} {line.spanned_max:3} |"
        f" {line.died:4} {line.hung:4} {100 * line.tokens_redone:6.2f}"
    )


if __name__ == "__main__":
    # A restart of a simulated actor is no news.
    logging.getLogger("cluster").setLevel(logging.ERROR)
    main()
