"""Plays the stages of an experiment in order, for each seed, and goes on where it stopped.

A stage that has ended is not played again, one that was interrupted is continued. Where a stage
fails, the stages that start from it are skipped for that seed, and all others are played.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.faults import RunError
from cluster.rundir import newest_export
from cluster.stage_process import play_apart
from configs.errors import UserError
from configs.experiments import (
    ExperimentConfig,
    Stage,
    chains,
    distinct_stages,
    save_experiment,
)
from configs.functions import resolve
from configs.load import differences, load, load_resolved, require_shared_run_dir
from evaluation.run_files import read_summary

Play = Callable[[Path, Sequence[str]], int]
"""Plays a preset with overrides; returns an exit code."""


@dataclass(frozen=True)
class Turn:
    """A stage with a seed."""

    stage: Stage
    seed: int
    root: Path

    @property
    def run_dir(self) -> Path:
        """Where it is played."""
        return run_dir_of(self.root, self.stage, self.seed)

    @property
    def previous(self) -> Path | None:
        """The run directory that it starts from."""
        if self.stage.previous is None:
            return None
        return run_dir_of(self.root, self.stage.previous, self.seed)

    def overrides(self, model: Path | None) -> list[str]:
        """What `selfplay train` is told; `model` is the folder that a later stage starts from."""
        made = [f"run_dir={quoted(self.run_dir)}", f"seed={self.seed}"]
        if model is not None:
            made += ["model.make=null", "model.revision=null", f"model.path={quoted(model)}"]
        return [*self.stage.overrides, *made]


def run_dir_of(root: Path, stage: Stage, seed: int) -> Path:
    """The run directory of a stage."""
    return root / f"seed-{seed}" / stage.folder


def quoted(path: Path) -> str:
    """A path as a YAML value, whatever is in its name."""
    return json.dumps(str(path), ensure_ascii=False)


def run_experiment(config: ExperimentConfig, play: Play = play_apart) -> list[str]:
    """Play what is missing; return a sentence for each stage that failed or was skipped.

    Raises UserError before anything is played where a preset or an override is wrong, and
    RunError where a stage was stopped from elsewhere.
    """
    require_shared_run_dir(config.experiment_dir)
    turns = turns_of(config)
    check(turns)
    save_experiment(config)
    make_data(config)
    failed: dict[Path, str] = {}
    for place, turn in enumerate(turns):
        if turn.previous in failed:
            failed[turn.run_dir] = f"{turn.run_dir} was skipped: {turn.previous} has not ended"
            continue
        print(announcement(place, turns, turn), flush=True)
        try:
            play_turn(turn, play)
        except UserError as error:
            failed[turn.run_dir] = f"{turn.run_dir} failed: {error}"
            print(f"selfplay: {failed[turn.run_dir]}", flush=True)
    return list(failed.values())


def turns_of(config: ExperimentConfig) -> list[Turn]:
    """All stages for the first seed, then for the next: an early end leaves whole seeds."""
    stages = distinct_stages(chains(config))
    return [Turn(stage, seed, config.experiment_dir) for seed in config.seeds for stage in stages]


def check(turns: Iterable[Turn]) -> None:
    """Raise UserError where a stage's configuration is wrong."""
    for turn in turns:
        load(turn.stage.config, turn.overrides(turn.previous))


def make_data(config: ExperimentConfig) -> None:
    """Make the data files that are not there."""
    for path, function in config.data.items():
        if not path.exists():
            resolve(f"data.{path}", function)(path)


def play_turn(turn: Turn, play: Play) -> None:
    """Play a stage to its end, unless it has ended. Raises UserError where it fails."""
    model = None if turn.previous is None else newest_export(turn.previous)
    overrides = turn.overrides(model)
    if read_summary(turn.run_dir) is not None:
        check_same(turn.run_dir, turn.stage.config, overrides)
        return
    code = play(turn.stage.config, overrides)
    if code:
        raise UserError(
            f"selfplay train ended with exit code {code}; what it said is above, and in"
            f" {turn.run_dir}/logs/driver.log if it came that far"
        )
    if read_summary(turn.run_dir) is None:
        raise RunError(f"{turn.run_dir} was stopped before its end: the same command continues it")


def check_same(run_dir: Path, config: Path, overrides: Sequence[str]) -> None:
    """Refuse a finished run that was played with other settings."""
    changed = differences(load_resolved(run_dir), load(config, overrides))
    if changed:
        raise UserError(
            f"it was played with other settings ({'; '.join(changed[:4])}): put them back, or"
            " remove its folder to play it anew"
        )


def announcement(place: int, turns: Sequence[Turn], turn: Turn) -> str:
    """Which stage comes now, and about how long the rest takes."""
    if read_summary(turn.run_dir) is not None:
        return f"[{place + 1}/{len(turns)}] {turn.run_dir} has ended"
    left = seconds_left([one.run_dir for one in turns])
    return f"[{place + 1}/{len(turns)}] {turn.run_dir}; {estimate(left)}"


def seconds_left(run_dirs: Sequence[Path]) -> float | None:
    """Seconds for the runs that have not ended, each at the mean of those that have."""
    summaries = [read_summary(run_dir) for run_dir in run_dirs]
    took = [sum(summary["wall_s"].values()) for summary in summaries if summary is not None]
    return (len(summaries) - len(took)) * sum(took) / len(took) if took else None


def estimate(left_s: float | None) -> str:
    """The time left in words."""
    if left_s is None:
        return "how long the rest takes is known after the first stage"
    end = time.strftime("%H:%M", time.localtime(time.time() + left_s))
    return f"about {max(1, round(left_s / 60))} min to the end of the experiment, at {end}"


def stages_of(config: ExperimentConfig) -> dict[str, dict[int, list[Path]]]:
    """The run directories of each method's stages, by seed, played or not."""
    root = config.experiment_dir
    return {
        method: {seed: [run_dir_of(root, stage, seed) for stage in chain] for seed in config.seeds}
        for method, chain in chains(config).items()
    }


def ended(config: ExperimentConfig) -> dict[str, dict[int, list[Path]]]:
    """The run directories of each method, by seed, where all its stages have ended."""
    return {
        method: {
            seed: dirs
            for seed, dirs in by_seed.items()
            if all(read_summary(run_dir) is not None for run_dir in dirs)
        }
        for method, by_seed in stages_of(config).items()
    }


def bases(config: ExperimentConfig) -> Mapping[int, Path]:
    """By seed, a run directory that measured the base model before it began."""
    first = [stage for stage in distinct_stages(chains(config)) if stage.previous is None]
    found: dict[int, Path] = {}
    for seed in config.seeds:
        dirs = [run_dir_of(config.experiment_dir, stage, seed) for stage in first]
        ready = [run_dir for run_dir in dirs if read_summary(run_dir) is not None]
        if ready:
            found[seed] = ready[0]
    return found
