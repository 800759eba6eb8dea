"""`selfplay report EXPERIMENT`: methods compared, on one HTML page that needs no network.

The page links to the reports of the stages, which stand in the same folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml

from configs.experiments import ExperimentConfig
from configs.load import RESOLVED
from evaluation.charts import Chart, Drawing, draw_chart
from evaluation.experiment import OVERALL
from evaluation.experiment_chart import COLOURS, Curves, mean_curve
from evaluation.experiment_judged import Runs
from evaluation.experiment_page import (
    RATES,
    TESTS,
    Figures,
    families_of,
    is_judged,
    outcomes,
    probability,
)
from evaluation.report import REPORT
from evaluation.report_bars import Bar, draw_differences, draw_outcomes, draw_rates
from evaluation.report_curves import TOP
from evaluation.report_games import Moment, moments, spread
from evaluation.report_page import versions_of, write_page
from evaluation.run_files import read_history, read_summary

PANELS = {
    "v": ("V", "mean external reward R of the trained queries", None, None),
    "informative": ("Informative queries", "share whose answers differ in R", 0, TOP),
    "quality": ("Quality V_Q", "the reference model's verdict R_Q, 0 to 7", None, None),
    "tasks": ("Tasks", "share of the trained queries that are tasks, by exact rules", 0, TOP),
    "admitted": ("Admitted queries", "share of the queries sampled", 0, TOP),
    "distinct": ("Different queries", "share of the texts of an iteration", 0, TOP),
    "new": ("New queries", "share that the stage has not trained before", 0, TOP),
    "distinct_2": ("Distinct 2-grams", "of the queries' words, over all of them", 0, TOP),
    "self_bleu": ("Self-BLEU", "of a query against the iteration's others; 1: all alike", 0, TOP),
    "novelty": ("Novelty", "mean, against the queries of past iterations", 0, TOP),
    "kl_solver": ("KL of the Solver", "to its reference, nats per token", None, None),
    "kl_challenger": ("KL of the Challenger", "to its reference, nats per token", None, None),
    "entropy": ("Entropy", "nats per trained token", None, None),
}  # fmt: skip
"""Title, note and axis of each curve of `evaluation.over_time`."""
ENDED = "ended"


@dataclass(frozen=True)
class Place:
    """A stage with a seed: how far it is, where its report is, seen from the page, and its time."""

    state: str
    link: str | None
    seconds: float | None


@dataclass(frozen=True)
class Line:
    """A method over its seeds; each rate of `means` by family, fractions with 95% intervals."""

    method: str
    seeds: int
    outcomes: dict[str, float | None]
    rates: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def overall(self) -> list[Mapping[str, Any]]:
        """The rates of all families together."""
        return [cells[OVERALL] for cells in self.rates.values()]


@dataclass(frozen=True)
class Sample:
    """Games of a method's last stage, at its start and at its end."""

    method: str
    run: str
    moments: list[Moment]


def write_experiment_report(
    config: ExperimentConfig,
    stages: Runs,
    figures: Figures | None,
    curves: Curves,
    failed: Sequence[str] = (),
) -> Path:
    """Write EXPERIMENT/report.html and return its path.

    Args:
        config: The experiment; the page goes into its `experiment_dir`.
        stages: By method and seed, the run directories of all stages, played or not.
        figures: The comparison of what has ended; None where nothing was measured.
        curves: By method and seed, the curves of the last stages.
        failed: Sentences on stages that failed or were skipped.
    """
    root = config.experiment_dir
    places = places_of(stages, root)
    settings = config.model_dump(mode="json")
    return write_page(
        root / REPORT,
        "report_experiment.html",
        name=root.absolute().name,
        config=config,
        figures=figures,
        judged=figures is not None and is_judged(figures),
        lines=lines(figures) if figures else [],
        families=families_of(figures) if figures else [],
        rates={rate: RATES[rate] for rate in figures["means"]} if figures else {},
        tests=tests_of(figures) if figures else {},
        drawings=drawn_rates(figures, config) if figures else [],
        probability=probability,
        curves=drawn_curves(curves, list(config.methods)),
        samples=samples(stages, root),
        places=places,
        states=[one.state for by_seed in places.values() for one in by_seed.values()],
        failed=failed,
        versions=versions(stages),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    )


# --- what the methods came to ---


def lines(figures: Figures) -> list[Line]:
    """The table of methods, means over their seeds."""
    return [
        Line(
            name,
            len(one["seeds"]),
            outcomes(one["seeds"]),
            {rate: by_method[name] for rate, by_method in figures["means"].items()},
        )
        for name, one in figures["methods"].items()
    ]


def tests_of(figures: Figures) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The paired tests, by what they are of."""
    if not is_judged(figures):
        return {"share solved": figures["tests"]} if figures["tests"] else {}
    return {what: figures[key] for key, what in TESTS.items() if figures[key]}


def drawn_rates(figures: Figures, config: ExperimentConfig) -> list[Drawing]:
    """The methods' rates with intervals and seeds; win, tie and loss, and gains, of who trained."""
    judged = is_judged(figures)
    colours = _colours(list(figures["methods"]))
    inside = "instructions" if judged else "problems"
    each = f"mean with its 95% interval, of one seed over its {inside}; a dot for each seed"
    titles = {rate: f"AlpacaEval win rate, {RATES[rate]}" for rate in figures["means"]}
    drawings = [
        draw_rates(titles[rate] if judged else "Problems solved", f"%, {each}", bars)
        for rate in figures["means"]
        if (bars := _rates(figures, rate, colours))
    ]
    if shares := _outcomes(figures, config):
        against = f"against {figures['reference']}" if judged else "against the base, by problem"
        drawings.append(draw_outcomes("Win, tie and loss", f"%, {against}", shares))
    if gains := _gains(figures, config, colours):
        drawings.append(draw_differences("Change against the base", f"points, {each}", gains))
    return drawings


def _rates(figures: Figures, rate: str, colours: Mapping[str, str]) -> list[Bar]:
    cells = {name: of[OVERALL] for name, of in figures["means"][rate].items()}
    return [
        _bar(name, cell["mean"], cell["ci95"], colours[name],
             [seed[rate] for seed in figures["methods"][name]["seeds"]])
        for name, cell in cells.items()
        if cell["mean"] is not None
    ]  # fmt: skip


def _outcomes(figures: Figures, config: ExperimentConfig) -> dict[str, dict[str, float]]:
    return {
        line.method: {name: _per_cent(share or 0.0) for name, share in line.outcomes.items()}
        for line in lines(figures)
        if line.seeds and config.methods.get(line.method)
    }


def _gains(figures: Figures, config: ExperimentConfig, colours: Mapping[str, str]) -> list[Bar]:
    """The paired differences to the method without stages, where there is one that was measured."""
    base = next((name for name, stages in config.methods.items() if not stages), None)
    bars = []
    for one in figures["tests"]:
        if base not in (one["method"], one["against"]):
            continue
        method, sign = (one["method"], 1) if one["against"] == base else (one["against"], -1)
        ends = one["ci95"] if len(one["seeds"]) > 1 else one["seeds"][0]["ci95"]
        ci95 = None if ends is None else sorted(sign * end for end in ends)
        seeds = [sign * seed["difference"] for seed in one["seeds"]]
        bars.append(_bar(method, sign * one["difference"], ci95, colours[method], seeds))
    return bars


def _bar(
    label: str, mean: float, ci95: Sequence[float] | None, colour: str, seeds: Sequence[float]
) -> Bar:
    ends = None if ci95 is None else [_per_cent(end) for end in ci95]
    return Bar(label, _per_cent(mean), ends, colour, [_per_cent(value) for value in seeds])


def _per_cent(share: float) -> float:
    return 100 * share


def _colours(methods: Sequence[str]) -> dict[str, str]:
    """By a method's place, the same in all charts."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(methods)}


# --- what happened on the way ---


def drawn_curves(curves: Curves, methods: Sequence[str]) -> list[Drawing]:
    """Every curve that has data, a line for each method: the mean over its seeds."""
    charts = [
        Chart(title, note, _means(curves, methods, key), low, high, palette=COLOURS)
        for key, (title, note, low, high) in PANELS.items()
    ]
    return [
        draw_chart(chart, range(1, 1 + max(map(len, chart.curves.values()))))
        for chart in charts
        if chart.has_data
    ]


def _means(curves: Curves, methods: Sequence[str], key: str) -> dict[str, list[float]]:
    """By method, the mean over the seeds, all as long as the longest; NaN where there is none."""
    means = {m: mean_curve([one[key] for one in curves.get(m, {}).values()]) for m in methods}
    length = max(map(len, means.values()), default=0)
    return {m: [*values, *[np.nan] * (length - len(values))] for m, values in means.items()}


def samples(stages: Runs, root: Path) -> list[Sample]:
    """Games of each method's last stage, of the first seed that has some."""
    found: list[Sample] = []
    for method, by_seed in stages.items():
        for chain in by_seed.values():
            shown = _start_and_end(chain[-1]) if chain else []
            if shown:
                found.append(Sample(method, _relative(chain[-1], root), shown))
                break
    return found


def _start_and_end(run_dir: Path) -> list[Moment]:
    history = read_history(run_dir)
    return moments(run_dir, spread(history[-1]["iteration"] + 1, 2)) if history else []


# --- the stages ---


def places_of(stages: Runs, root: Path) -> dict[str, dict[int, Place]]:
    """How far each stage is, by its name and seed; methods may share one."""
    dirs: dict[str, dict[int, Path]] = {}
    for by_seed in stages.values():
        for seed, chain in by_seed.items():
            for run_dir in chain:
                dirs.setdefault(run_dir.name, {})[seed] = run_dir
    return {
        name: {seed: _place(run_dir, root) for seed, run_dir in by_seed.items()}
        for name, by_seed in dirs.items()
    }


def _place(run_dir: Path, root: Path) -> Place:
    page, summary = run_dir / REPORT, read_summary(run_dir)
    link = quote(_relative(page, root)) if page.is_file() else None
    if summary is not None:
        return Place(ENDED, link, sum(summary["wall_s"].values()))
    history = read_history(run_dir)
    state = f"at iteration {history[-1]['iteration'] + 1}" if history else "not begun"
    return Place(state, link, None)


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def versions(stages: Runs) -> dict[str, str]:
    """Versions of the stages that began; those that differ beside each other."""
    found: dict[str, dict[str, None]] = {}
    chains = (chain for by_seed in stages.values() for chain in by_seed.values())
    for path in sorted({run_dir / RESOLVED for chain in chains for run_dir in chain}):
        settings = path.read_text("utf-8") if path.is_file() else ""
        for name, version in versions_of(settings).items():
            found.setdefault(name, {})[version] = None
    return {name: ", ".join(different) for name, different in found.items()}
