"""`make replicate`: the paper's table in miniature; `make replicate-kl`: its KL against others.

    python -m benchmarks.replicate [--kl] [--seeds 0 1 2 3 4]

Plays configs/experiments/playground.yaml (or playground-kl.yaml); stages that have ended are not
played again, one that was interrupted is continued. Writes benchmarks/results/replication.json,
.md and .png (or replication-kl.*). docs/replication.md says how each number is defined.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import measure
from cluster.experiment import ended, run_experiment
from cluster.experiment_results import figures_of
from cluster.faults import RunError
from configs.errors import UserError
from configs.experiments import ExperimentConfig, load_experiment
from evaluation.experiment_chart import Curves, draw
from evaluation.experiment_page import between, markdown, percent, points, table
from evaluation.experiment_time import times
from evaluation.over_time import Rules
from evaluation.replication import WATCHED, drift, questions
from evaluation.run_files import commit_of
from evaluation.self_reward import beside_the_verifier
from playground.language import parse
from playground.verdicts import criteria

EXPERIMENTS = Path("configs/experiments")
PART = "solved"
"""The quickstart's part of R."""
KL_WATCHED = ("kl_solver", "kl_challenger", *WATCHED)
JUDGE = {
    "variance_r": "variance of R",
    "variance_r_q": "of R_Q",
    "correlation": "correlation",
    "v_q_of_tasks": "V_Q of tasks",
    "v_q_of_others": "of others",
}
RULES = Rules(
    quality=lambda query, answer: float(sum(criteria(query, answer))),
    is_task=lambda query: parse(query) is not None,
)
"""For all methods alike: LSP-Zero and GRPO play without a judge, the judge of the others is a model
that can be wrong, and two methods play without a task verifier."""


def main() -> int:
    """Play what is missing, then write the figures; 1 where a stage failed."""
    parser = measure.parser(__doc__)
    parser.add_argument("--kl", action="store_true", help="compare forms of the KL term")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the experiment's")
    options = parser.parse_args()
    name = "playground-kl" if options.kl else "playground"
    try:
        config = load_experiment(EXPERIMENTS / f"{name}.yaml", options.seeds)
        failed = run_experiment(config)
        figures, curves = figures_of(config, RULES)
    except (UserError, RunError) as error:
        print(f"selfplay: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("selfplay: interrupted; the same command continues", file=sys.stderr)
        return 130
    stem = measure.RESULTS / ("replication-kl" if options.kl else "replication")
    if options.kl:
        more = {"over_time": drifts(curves)}
        page = drift_table(more["over_time"])
    else:
        more = {"questions": questions(figures, curves), "judge": judges(config)}
        page = told(more["questions"]) + "\n" + judge_table(more["judge"])
    time = {"at_once": config.at_once, **times(played(config))}
    made = {"time": time, "played_by_commits": commits(config), "missing": failed}
    measure.write(stem.with_suffix(".json"), {**figures, **more, **made})
    page = "\n".join([markdown(figures, failed), page, took(time)])
    stem.with_suffix(".md").write_text(page, "utf-8")
    draw(figures, curves, stem.with_suffix(".png"))
    print(page)
    return 1 if failed else 0


def judges(config: ExperimentConfig) -> dict[str, Any]:
    """By method, what the judge of its last stages said; only of those that have one."""
    runs = {
        method: [dirs[-1] for dirs in of.values() if dirs] for method, of in ended(config).items()
    }
    said = {m: beside_the_verifier(dirs, PART, RULES.is_task) for m, dirs in runs.items()}
    return {method: one for method, one in said.items() if one is not None}


def commits(config: ExperimentConfig) -> list[str]:
    """The versions of the code that played the stages."""
    found = {commit_of(run_dir) for run_dir in played(config).values()}
    return sorted(commit for commit in found if commit is not None)


def played(config: ExperimentConfig) -> dict[str, Path]:
    """The stages behind the figures, by their folder in the experiment's; shared ones are one."""
    chains = [dirs for by_seed in ended(config).values() for dirs in by_seed.values()]
    return {
        str(run_dir.relative_to(config.experiment_dir)): run_dir
        for dirs in chains
        for run_dir in dirs
    }


def took(time: Mapping[str, Any]) -> str:
    """How long the stages took, as a sentence."""
    return (
        f"Time: {len(time['stages'])} stages, at most {time['at_once']} at once:"
        f" {minutes(time['stages_s'])} by the clock of each added up, {minutes(time['clock_s'])} in"
        " which at least one of them was played.\n"
    )


def minutes(seconds: float | None) -> str:
    """Seconds in whole minutes."""
    return "–" if seconds is None else f"{seconds / 60:.0f} min"


def judge_table(judges: Mapping[str, Mapping[str, float | None]]) -> str:
    """The judge's R_Q beside the verifier's R, as Markdown."""
    rows = [[method, *(figure(one[key]) for key in JUDGE)] for method, one in judges.items()]
    return (
        "What does the judge know? Variance of R and of R_Q within a group, their correlation"
        " there, and V_Q of queries that are tasks and of others:\n\n"
        + table(["method", *JUDGE.values()], rows)
        + "\n"
    )


def drifts(curves: Curves) -> dict[str, Any]:
    """By method, what changed from the first fifth of the run to the last."""
    return {
        method: {key: drift(by_seed, key) for key in KL_WATCHED}
        for method, by_seed in curves.items()
    }


def told(answers: Mapping[str, Any]) -> str:
    """The four questions with their figures, as Markdown."""
    beats = answers["does_data_free_self_play_beat_the_base"]
    adds = answers["does_self_play_add_to_grpo"]
    return (
        "\n\n".join(
            [
                "Does data-free self-play beat the base? Percentage points above it:",
                table(
                    ["method", "difference", "95% interval"], [difference_row(one) for one in beats]
                ),
                "How much of GRPO's gain does it recover? Share of the gain, in %:",
                table(
                    ["method", "share", "95% interval"],
                    [share_row(name, one) for name, one in share_items(answers)],
                ),
                "Does LSP-Zero degenerate where LSP does not? First fifth of the run → last fifth:",
                drift_table(answers["does_lsp_zero_degenerate"]).rstrip(),
                "Does self-play add to a model trained on data? Points above GRPO:",
                table(
                    ["method", "difference", "95% interval"],
                    [difference_row(adds)] if adds else [],
                ),
            ]
        )
        + "\n"
    )


def share_items(answers: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The shares of GRPO's gain that could be taken."""
    shares = answers["share_of_grpo_gain_recovered"]
    return [(name, one) for name, one in shares.items() if one is not None]


def share_row(name: str, one: Mapping[str, Any]) -> list[str]:
    """A method's share of GRPO's gain."""
    return [name, percent(one["share"]), between(one["ci95"])]


def difference_row(test: Mapping[str, Any]) -> list[str]:
    """A paired difference."""
    return [test["method"], points(test["difference"]), between(test["ci95"], signed=True)]


def drift_table(drifting: Mapping[str, Any]) -> str:
    """First fifth → last fifth of each curve, by method."""
    keys = list(next(iter(drifting.values()), {}))
    rows = [
        [method, *(f"{figure(one[key]['first'])} → {figure(one[key]['last'])}" for key in keys)]
        for method, one in drifting.items()
    ]
    return table(["method", *keys], rows) + "\n"


def figure(value: float | None) -> str:
    """A figure to three digits."""
    return "–" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
