"""Plays the stages of an experiment in order, for each seed, and goes on where it stopped.

A stage that has ended is not played again, one that was interrupted is continued. Where a stage
fails, the stages that start from it are skipped for that seed, and all others are played. With
`at_once` above 1, stages that do not start from each other are played side by side.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from cluster.faults import RunError
from cluster.rundir import newest_export
from cluster.stage_process import StageProcesses
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

Play = Callable[[str, Path, Sequence[str]], int]
"""Plays, under a name, a preset with overrides; returns an exit code."""


@dataclass(frozen=True)
class Turn:
    """A stage with a seed."""

    stage: Stage
    seed: int
    root: Path

    @property
    def name(self) -> str:
        """The part of its folder's name that no other stage of the experiment has."""
        return str(self.run_dir.relative_to(self.root))

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


def run_experiment(config: ExperimentConfig, play: Play | None = None) -> list[str]:
    """Play what is missing; return a sentence for each stage that failed or was skipped.

    Raises UserError before anything is played where a preset or an override is wrong, RunError
    where a stage was stopped from elsewhere, and KeyboardInterrupt where a signal asked for a stop,
    after the stages in hand have ended.
    """
    require_shared_run_dir(config.experiment_dir)
    turns = turns_of(config)
    check(turns)
    save_experiment(config)
    make_data(config)
    with StageProcesses() as processes:
        schedule = Schedule(turns, config.at_once, play or processes.play)
        try:
            schedule.play(lambda: processes.asked)
        except RunError:
            # A stage that saves and ends because it was asked to, as all are.
            if not processes.asked:
                raise
        if processes.asked:
            raise KeyboardInterrupt
    return list(schedule.failed.values())


@dataclass
class Schedule:
    """Turns in their order, at most `at_once` at a time, each after the one that it starts from."""

    turns: Sequence[Turn]
    at_once: int
    play_stage: Play
    failed: dict[Path, str] = field(default_factory=dict)
    """By run directory, what became of a stage that did not end."""

    def play(self, asked: Callable[[], bool]) -> None:
        """Play them all; from when `asked` is true, begin none."""
        waiting, running = list(self.turns), dict[Future[None], Turn]()
        with ThreadPoolExecutor(self.at_once) as pool:
            while True:
                while len(running) < self.at_once and not asked():
                    turn = self._next(waiting, running.values())
                    if turn is None:
                        break
                    print(announcement(turn, self.turns, self.at_once), flush=True)
                    running[pool.submit(play_turn, turn, self.play_stage)] = turn
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    self._note(running.pop(future), future)

    def _next(self, waiting: list[Turn], running: Iterable[Turn]) -> Turn | None:
        """Take the next turn that need not wait for another; those that never can are skipped."""
        unfinished = {turn.run_dir for turn in (*waiting, *running)}
        for turn in list(waiting):
            if turn.previous in self.failed:
                waiting.remove(turn)
                self.failed[turn.run_dir] = (
                    f"{turn.run_dir} was skipped: {turn.previous} has not ended"
                )
            elif turn.previous not in unfinished:
                waiting.remove(turn)
                return turn
        return None

    def _note(self, turn: Turn, future: Future[None]) -> None:
        """Keep what a stage failed of; raise what is not its own failure."""
        try:
            future.result()
        except UserError as error:
            self.failed[turn.run_dir] = f"{turn.run_dir} failed: {error}"
            print(f"selfplay: {self.failed[turn.run_dir]}", flush=True)


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
    code = play(turn.name, turn.stage.config, overrides)
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


def announcement(turn: Turn, turns: Sequence[Turn], at_once: int) -> str:
    """Which stage comes now, and about how long the rest takes."""
    begins = f"[{turns.index(turn) + 1}/{len(turns)}] {turn.run_dir}"
    if read_summary(turn.run_dir) is not None:
        return f"{begins} has ended"
    return f"{begins}; {estimate(seconds_left([one.run_dir for one in turns], at_once))}"


def seconds_left(run_dirs: Sequence[Path], at_once: int) -> float | None:
    """Seconds for the runs that have not ended, each at the mean of those that have."""
    summaries = [read_summary(run_dir) for run_dir in run_dirs]
    took = [sum(summary["wall_s"].values()) for summary in summaries if summary is not None]
    if not took:
        return None
    return (len(summaries) - len(took)) * sum(took) / len(took) / at_once


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
    return {seed: dirs[0] for seed, dirs in first_stages(config).items()}


def first_stages(config: ExperimentConfig) -> dict[int, list[Path]]:
    """By seed, the run directories that began with the base model and have ended, if any has."""
    first = [stage for stage in distinct_stages(chains(config)) if stage.previous is None]
    found: dict[int, list[Path]] = {}
    for seed in config.seeds:
        dirs = [run_dir_of(config.experiment_dir, stage, seed) for stage in first]
        ready = [run_dir for run_dir in dirs if read_summary(run_dir) is not None]
        if ready:
            found[seed] = ready
    return found
