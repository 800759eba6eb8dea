"""What an experiment came to: EXPERIMENT/results.json, .md and .png, and report.html."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.experiment import bases, ended, first_stages, stages_of
from cluster.initial import KEPT, InitialModel
from configs.errors import UserError
from configs.experiments import SAVED, ExperimentConfig, load_experiment
from configs.load import RESOLVED, load_resolved
from configs.provenance import provenance
from evaluation.experiment import check_bases, compare
from evaluation.experiment_chart import Curves, draw
from evaluation.experiment_judged import EVALUATION, Runs, compare_judged
from evaluation.experiment_page import markdown
from evaluation.over_time import Rules, over_time
from evaluation.report_experiment import write_experiment_report
from learner.checkpoint import write_durably

RESULTS = "results"
BASE = "base"
"""The folder of what was measured of base models, beside those of the seeds."""
UNTRAINED = f"{EVALUATION}0"
"""The folder of a base model's AlpacaEval results."""


def figures_of(
    config: ExperimentConfig, rules: Rules | None = None
) -> tuple[dict[str, Any], Curves]:
    """Figures and curves of the stages that have ended; `rules` as in `over_time`.

    Raises UserError where the first stages of a seed did not begin with one model.
    """
    firsts = first_stages(config)
    check_models(firsts)
    check_bases(firsts)
    base = bases(config)
    runs = {
        method: {seed: dirs for seed, dirs in by_seed.items() if seed in base}
        for method, by_seed in ended(config).items()
    }
    return compare(runs, base), curves_of(runs, rules)


def check_models(firsts: Mapping[int, Sequence[Path]]) -> None:
    """Raise UserError where first stages of one seed began with different models."""
    for seed, dirs in firsts.items():
        models = {run_dir: began_with(run_dir).identity for run_dir in dirs}
        for run_dir, identity in models.items():
            if identity != models[dirs[0]]:
                raise UserError(
                    f"{dirs[0]} and {run_dir} began with different models, so seed {seed} has no"
                    " one base to compare with: give both one model, remove the folder of the"
                    " wrong one and play it anew"
                )


def curves_of(runs: Runs, rules: Rules | None = None) -> Curves:
    """The curves of every method's last stages."""
    played = {method: by_seed for method, by_seed in runs.items() if any(by_seed.values())}
    return {
        method: {seed: over_time(dirs[-1], rules) for seed, dirs in by_seed.items() if dirs}
        for method, by_seed in played.items()
    }


def write_results(config: ExperimentConfig, failed: Sequence[str]) -> str:
    """Write the results of what has ended into the experiment's folder; return the table.

    Runs without held-out problems are compared by AlpacaEval; where they have not been judged
    yet, the text says how to go on.
    """
    figures, curves = compared(config)
    missing = [*failed, *unjudged(config, figures)]
    page = write_experiment_report(config, stages_of(config), figures, curves, missing)
    if figures is None:
        return f"{without_heldout(config)}\n\nwritten to {page}"
    text = markdown(figures, missing)
    folder = config.experiment_dir
    content = {"versions": provenance(), "missing": missing, **figures}
    write_durably(folder / f"{RESULTS}.json", json.dumps(content, indent=1) + "\n")
    write_durably(folder / f"{RESULTS}.md", text)
    draw(figures, curves, folder / f"{RESULTS}.png")
    return f"{text}\nwritten to {folder / RESULTS}.json, .md and .png, and to {page}"


def report(folder: Path) -> Path:
    """Write the report of the experiment in `folder`, of what has ended so far; return its path."""
    config = load_experiment(folder / SAVED).model_copy(update={"experiment_dir": folder})
    figures, curves = compared(config)
    missing = unjudged(config, figures)
    return write_experiment_report(config, stages_of(config), figures, curves, missing)


def compared(config: ExperimentConfig) -> tuple[dict[str, Any] | None, Curves]:
    """Figures and curves by held-out problems, else by AlpacaEval; figures None without either."""
    runs = ended(config)
    if measured(runs):
        return figures_of(config)
    check_models(first_stages(config))
    return compare_judged(with_bases(config)), curves_of(runs)


def measured(runs: Runs) -> bool:
    """Whether the runs measured held-out problems."""
    dirs = [run for by_seed in runs.values() for chain in by_seed.values() for run in chain]
    played = [run_dir for run_dir in dirs if (run_dir / RESOLVED).is_file()]
    return bool(played) and all(load_resolved(run).heldout is not None for run in played)


# --- AlpacaEval ---


def with_bases(config: ExperimentConfig) -> Runs:
    """What has ended, a method without stages with the folder of its base model's results.

    A model that several seeds begin with has one folder: it is judged once.
    """
    root = config.experiment_dir / BASE
    began = {seed: began_with(run_dir) for seed, run_dir in bases(config).items()}
    folders = {seed: root / model.identity.replace("/", "--") for seed, model in began.items()}
    return {
        method: {seed: dirs or [folders[seed]] for seed, dirs in by_seed.items() if seed in folders}
        for method, by_seed in ended(config).items()
    }


def commands(config: ExperimentConfig) -> dict[tuple[str, int], str]:
    """By method and seed, what has the last stage's model judged, a base's against its own copy."""
    base = {seed: began_with(run_dir).named for seed, run_dir in bases(config).items()}
    return {
        (method, seed): _command(dirs[-1], base[seed], trained=bool(config.methods[method]))
        for method, by_seed in with_bases(config).items()
        for seed, dirs in by_seed.items()
    }


def _command(run_dir: Path, base: str, *, trained: bool) -> str:
    # Left to itself, the command compares with what the run began with, not with a chain's base.
    words = [str(run_dir) if trained else base, "--against", base]
    out = [] if trained else ["--out", str(run_dir / "evaluation" / UNTRAINED)]
    return shlex.join(["selfplay", "evaluate", "alpaca-eval", *words, *out])


def unjudged(config: ExperimentConfig, figures: Mapping[str, Any] | None) -> list[str]:
    """A sentence on each method that AlpacaEval's figures lack, with the command that adds it."""
    lacking = [] if figures is None else figures.get("unjudged", [])
    command = commands(config) if lacking else {}
    return [
        f"{one['method']}, seed {one['seed']}, {one['reason']}:"
        f" `{command[one['method'], one['seed']]}` with the --judge of the others"
        for one in lacking
    ]


def without_heldout(config: ExperimentConfig) -> str:
    """The commands that measure the last stages and the base by AlpacaEval."""
    lines = dict.fromkeys(commands(config).values())
    if not lines:
        return "No method has ended, so there is nothing to compare."
    return (
        "The stages measured no held-out problems. To compare them with the base, run these with a"
        " --judge, and then this command again for the table:\n"
        + "\n".join(f"  {line}" for line in lines)
    )


def began_with(run_dir: Path) -> InitialModel:
    """The model that a run began with."""
    return InitialModel.model_validate_json((run_dir / KEPT).read_text("utf-8"))
