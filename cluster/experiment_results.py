"""What an experiment came to: EXPERIMENT/results.json, .md and .png, and report.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.experiment import bases, ended, stages_of
from cluster.initial import KEPT, InitialModel
from configs.experiments import SAVED, ExperimentConfig, load_experiment
from configs.load import RESOLVED, load_resolved
from configs.provenance import provenance
from evaluation.experiment import Points, compare, over_time
from evaluation.experiment_judged import Runs, compare_judged
from evaluation.experiment_page import Curves, draw, markdown
from evaluation.report_experiment import write_experiment_report
from learner.checkpoint import write_durably

RESULTS = "results"


def figures_of(
    config: ExperimentConfig, points: Points | None = None
) -> tuple[dict[str, Any], Curves]:
    """Figures and curves of the stages that have ended; `points` as in `over_time`."""
    base = bases(config)
    runs = {
        method: {seed: dirs for seed, dirs in by_seed.items() if seed in base}
        for method, by_seed in ended(config).items()
    }
    return compare(runs, base), curves_of(runs, points)


def curves_of(runs: Runs, points: Points | None = None) -> Curves:
    """The curves of every method's last stages."""
    played = {method: by_seed for method, by_seed in runs.items() if any(by_seed.values())}
    return {
        method: {seed: over_time(dirs[-1], points) for seed, dirs in by_seed.items() if dirs}
        for method, by_seed in played.items()
    }


def write_results(config: ExperimentConfig, missing: Sequence[str]) -> str:
    """Write the results of what has ended into the experiment's folder; return the table.

    Runs without held-out problems are compared by AlpacaEval; where they have not been judged
    yet, the text says how to go on.
    """
    figures, curves = compared(config)
    page = write_experiment_report(config, stages_of(config), figures, curves, missing)
    if figures is None:
        return f"{without_heldout(ended(config))}\n\nwritten to {page}"
    text = markdown(figures, missing)
    folder = config.experiment_dir
    content = {"versions": provenance(), "missing": list(missing), **figures}
    write_durably(folder / f"{RESULTS}.json", json.dumps(content, indent=1) + "\n")
    write_durably(folder / f"{RESULTS}.md", text)
    draw(figures, curves, folder / f"{RESULTS}.png")
    return f"{text}\nwritten to {folder / RESULTS}.json, .md and .png, and to {page}"


def report(folder: Path) -> Path:
    """Write the report of the experiment in `folder`, of what has ended so far; return its path."""
    config = load_experiment(folder / SAVED).model_copy(update={"experiment_dir": folder})
    return write_experiment_report(config, stages_of(config), *compared(config))


def compared(config: ExperimentConfig) -> tuple[dict[str, Any] | None, Curves]:
    """Figures and curves by held-out problems, else by AlpacaEval; figures None without either."""
    runs = ended(config)
    if measured(runs):
        return figures_of(config)
    return compare_judged(runs), curves_of(runs)


def measured(runs: Runs) -> bool:
    """Whether the runs measured held-out problems."""
    dirs = [run for by_seed in runs.values() for chain in by_seed.values() for run in chain]
    played = [run_dir for run_dir in dirs if (run_dir / RESOLVED).is_file()]
    return bool(played) and all(load_resolved(run).heldout is not None for run in played)


def without_heldout(runs: Runs) -> str:
    """The commands that measure the last stages by a benchmark, each against the base model."""
    played = [chain for by_seed in runs.values() for chain in by_seed.values() if chain]
    if not played:
        return "No method has ended, so there is nothing to compare."
    # Left to itself, the command compares with what the run began with, not with a chain's base.
    commands = "\n".join(
        f"  selfplay evaluate alpaca-eval {chain[-1]} --against {base_of(chain[0])}"
        for chain in played
    )
    return (
        "The stages measured no held-out problems. To compare them with the base, run these with a"
        f" --judge, and then this command again for the table:\n{commands}"
    )


def base_of(run_dir: Path) -> str:
    """The model that a run began with."""
    return InitialModel.model_validate_json((run_dir / KEPT).read_text("utf-8")).path
