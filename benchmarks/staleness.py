"""`make staleness`: real runs that generate ahead of the learner, against runs that do not.

    python -m benchmarks.staleness [--seeds 0] [--staleness 0 1]

Plays the quickstart once for each seed and staleness. A run that has ended is not played again, one
that was interrupted is continued. Writes benchmarks/results/staleness.json: the seconds of an
iteration and where the learner spends them, how stale what it trains is, and the solve rate on
held-out problems before and after. On a machine where engines and learner share the cores, what
runs at the same time takes longer: the share of waiting falls by more than the iteration's time.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.selfplay import summary_of
from evaluation.run_files import commit_of, read_history

RUNS = Path("runs/staleness")
WARM_UP = 5
"""Iterations at the start that are left out: an engine's first steps are slow."""
HELDOUT = ("before", "after", "difference", "ci95_difference")


def main() -> None:
    """Play what is missing, then write the figures."""
    parser = measure.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    rows = [row_of(seed, staleness) for seed in options.seeds for staleness in options.staleness]
    for row in rows:
        print(told(row))
    measure.write(measure.RESULTS / "staleness.json", {"runs": rows})


def row_of(seed: int, staleness: int) -> dict[str, Any]:
    """The figures of one run, which is played where it has not ended."""
    run_dir = RUNS / f"staleness-{staleness}-seed-{seed}"
    summary = summary_of(run_dir, [f"seed={seed}", f"staleness={staleness}"])
    return {
        "staleness": staleness,
        "seed": seed,
        **timing(read_history(run_dir)),
        "heldout": {key: summary["heldout"][key] for key in HELDOUT},
        "git_commit": commit_of(run_dir),
    }


def timing(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Where an iteration's time goes, and how stale what was trained is.

    `learner_waits` is the share of the time in which the learner has nothing to train;
    `staleness_mean` counts published versions from a group's oldest token to its step.
    """
    rows = history[WARM_UP:]
    seconds = [row["seconds"] for row in rows]
    whole = sum(one["iteration"] for one in seconds)
    return {
        "iteration": measure.figure([one["iteration"] for one in seconds], "s"),
        "tokens_per_second": sum(row["tokens_generated"] for row in rows) / whole,
        "learner_waits": sum(one["wait"] for one in seconds) / whole,
        "learner_trains": sum(one["train"] for one in seconds) / whole,
        "publishing": sum(one["publish"] for one in seconds) / whole,
        "staleness_mean": statistics.mean(row["staleness_mean"] for row in rows),
        "staleness_max": max(row["staleness_max"] for row in rows),
    }


def told(row: dict[str, Any]) -> str:
    """One line for a person."""
    heldout = row["heldout"]
    return (
        f"staleness {row['staleness']}, seed {row['seed']}:"
        f" {row['iteration']['median']:.2f} s an iteration,"
        f" {row['tokens_per_second']:.0f} tokens/s, the learner waits {row['learner_waits']:.0%}"
        f" of the time; trained at staleness {row['staleness_mean']:.2f}"
        f" (at most {row['staleness_max']});"
        f" held-out {heldout['before']:.1%} -> {heldout['after']:.1%}"
    )


if __name__ == "__main__":
    main()
