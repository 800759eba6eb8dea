"""`make figures`: does self-play help, on held-out problems, for seeds fixed beforehand?

    python -m benchmarks.selfplay [--seeds 0 1 2]

Plays the quickstart for each seed (base model and game of that seed), and beside it the same with
the paper's literal Challenger reward −V + V_Q. A run that has ended is not played again, one that
was interrupted is continued. Writes benchmarks/results/selfplay.json and selfplay.png: the greedy
solve rate on held-out problems before and after with 95% intervals, the seconds each run took and
the most memory its processes held, and the curves.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks import measure
from evaluation.run_files import commit_of, read_history, read_summary

RUNS = Path("runs/figures")
VARIANTS = {
    "quickstart": [],
    "paper": [
        "challenger.reward=quality",
        "challenger.learnability_part=null",
        "challenger.alpha=1",
        "rewards.quality.weight=1",
    ],
}
TITLES = {
    "quickstart": "Challenger: min(p, 1−p) + w·V_Q (the quickstart)",
    "paper": "Challenger: −V + V_Q, α 1 (the paper)",
}
CURVES = (
    ("v", "V, the solve rate of the Challenger's queries", 0.8),
    ("kl_solver", "KL of the Solver to the reference, nats per token", 0.16),
)
"""Keys of metrics.jsonl, titles, and the end of the axis, the same for both rewards."""


def main() -> None:
    """Play what is missing, then write the figures."""
    parser = measure.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    runs = {(name, seed): RUNS / f"{name}-{seed}" for name in VARIANTS for seed in options.seeds}
    summaries = {
        (name, seed): summary_of(run_dir, [*VARIANTS[name], f"seed={seed}"])
        for (name, seed), run_dir in runs.items()
    }
    figures: dict[str, Any] = {name: {"seeds": []} for name in VARIANTS}
    for (name, seed), summary in summaries.items():
        made_with = {key: summary[key] for key in ("wall_s", "versions")}
        made_with["git_commit"] = commit_of(runs[name, seed])
        made_with["peak_memory_bytes"] = measure.peak_memory(runs[name, seed])
        row = {"seed": seed, **summary["heldout"], **made_with}
        figures[name]["seeds"].append(row)
        print(f"{name:12} seed {seed}: {row['before']:.3f} -> {row['after']:.3f}")
    measure.write(measure.RESULTS / "selfplay.json", figures)
    draw(runs, figures, measure.RESULTS / "selfplay.png")


def summary_of(run_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """The summary of a run of the quickstart, which is played, in a process of its own, where it
    has not ended."""
    if read_summary(run_dir) is None:
        command = [sys.executable, "-m", "cluster", "train", "configs/quickstart.yaml"]
        measure.run([*command, f"run_dir={run_dir}", *overrides], run_dir)
    summary = read_summary(run_dir)
    assert summary is not None, "it was just played"
    return summary


def draw(runs: dict[tuple[str, int], Path], figures: dict[str, Any], path: Path) -> None:
    """Held-out rates on the left, curves over the iterations to their right."""
    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(
        len(VARIANTS), 1 + len(CURVES), figsize=(11, 3.1 * len(VARIANTS)), squeeze=False
    )
    for row, name in enumerate(VARIANTS):
        draw_rates(axes[row][0], figures[name]["seeds"])
        axes[row][0].set_title(TITLES[name], loc="left", fontsize=9)
        for column, (key, label, top) in enumerate(CURVES, start=1):
            draw_curve(axes[row][column], runs, name, key)
            axes[row][column].set_title(label, loc="left", fontsize=9)
            axes[row][column].set_ylim(0, top)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    print(f"written to {path}")


def draw_rates(axes: Axes, seeds: list[dict[str, Any]]) -> None:
    """Before and after of each seed, with 95% intervals."""
    for place, row in enumerate(seeds):
        for shift, when, colour in ((-0.12, "before", "#9aa5b1"), (0.12, "after", "#1f6feb")):
            low, high = row[f"ci95_{when}"]
            rate = row[when]
            axes.errorbar(
                place + shift,
                100 * rate,
                yerr=[[100 * (rate - low)], [100 * (high - rate)]],
                fmt="o",
                color=colour,
                capsize=3,
                label=when if place == 0 else None,
            )
        axes.annotate(
            f"{100 * row['difference']:+.1f}",
            (place, 100 * row["ci95_after"][1]),
            (0, 5),
            textcoords="offset points",
            ha="center",
        )
    axes.set_xticks(range(len(seeds)), [f"seed {row['seed']}" for row in seeds])
    axes.set_ylabel("held-out solved, %")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, loc="lower left")


def draw_curve(axes: Axes, runs: dict[tuple[str, int], Path], name: str, key: str) -> None:
    """One line a seed, the mean of the last ten iterations."""
    for (variant, seed), run_dir in runs.items():
        if variant != name:
            continue
        history = read_history(run_dir)
        values = [row[key] if key in row else row["learner"].get(key) for row in history]
        smooth = [
            sum(values[max(0, i - 9) : i + 1]) / len(values[max(0, i - 9) : i + 1])
            for i in range(len(values))
        ]
        axes.plot(smooth, lw=1.4, label=f"seed {seed}")
    axes.set_xlabel("iteration")
    axes.legend(frameon=False, loc="upper right", ncols=3, handlelength=1)


if __name__ == "__main__":
    main()
