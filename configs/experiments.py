"""The configuration of an experiment: methods as chains of training stages, played for each seed.

A method is a list of stages; the first starts from the model of its preset, each later one from
the one before it. Methods that begin with the same stages share them. A method without stages is
the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, StringConstraints, field_validator, model_validator

from configs.base import Config, FunctionName
from configs.errors import naming
from configs.load import configured, read_yaml

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""A name that can be a folder's."""

SAVED = "experiment.yaml"
"""The experiment as it was played last, in its folder."""
THEN = "+"
"""Joins the names of a chain's stages to a folder's name; no stage's name can hold it."""
SET_BY_EXPERIMENT = ("run_dir", "seed")
SET_BY_CHAIN = ("model", "model.path", "model.make", "model.revision")


class StageConfig(Config):
    """One training run of a method."""

    name: Name
    """What the stage is called; the run's folder is named after it and the stages before it."""
    config: Path
    """A preset of `selfplay train`."""
    set: list[str] = Field(default=[])
    """Overrides of the preset, each `a.b=c`."""


class ExperimentConfig(Config):
    """Methods to be compared, and the seeds to play them with."""

    experiment_dir: Path
    """Where the stages' run directories and the results go."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """Each method is played once with each of them."""
    methods: dict[Name, list[StageConfig]] = Field(min_length=1)
    """The stages of each method, in order; an empty list is the base model."""
    at_once: int = Field(default=1, ge=1)
    """Stages that are played side by side, each with actors of its own; the machine, or the cluster
    at RAY_ADDRESS, must have room for them."""
    data: dict[Path, FunctionName] = Field(default={})
    """Files that stages read, each made by a function `(path) -> None` where it is not there."""

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds names a seed twice: {seeds}")
        return seeds

    @model_validator(mode="after")
    def _stages_make_sense(self) -> ExperimentConfig:
        if not any(self.methods.values()):
            raise ValueError("methods holds no stage: give one method a stage, such as {name: lsp}")
        for method, stages in self.methods.items():
            _check_method(method, stages)
        _check_folders(self)
        return self


@dataclass(frozen=True)
class Stage:
    """A stage in its chain."""

    folder: str
    """Of its run directory."""
    config: Path
    """The preset."""
    overrides: tuple[str, ...]
    """Of the preset."""
    previous: Stage | None
    """The stage that it starts from; None: the preset's own model."""

    def same_play(self, other: Stage) -> bool:
        """Whether both play the same from the same starting point, whatever they are called."""
        if (self.config, self.overrides) != (other.config, other.overrides):
            return False
        if self.previous is None or other.previous is None:
            return self.previous is other.previous
        return self.previous.same_play(other.previous)


Chains = dict[str, tuple[Stage, ...]]


def load_experiment(path: Path, seeds: Sequence[int] | None = None) -> ExperimentConfig:
    """The experiment in a YAML file, with other seeds if given.

    Raises UserError as `configs.load.load` does.
    """
    overrides = [f"seeds={list(seeds)}"] if seeds else []
    return configured(ExperimentConfig, read_yaml(path), overrides, str(path))


def save_experiment(config: ExperimentConfig) -> None:
    """Write EXPERIMENT/experiment.yaml, by which the folder is known and reported on."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    path = config.experiment_dir / SAVED
    unfinished = path.with_suffix(".tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(f"# What this experiment is, as it was played last.\n{text}", "utf-8")
        unfinished.replace(path)


def chains(config: ExperimentConfig) -> Chains:
    """The stages of each method; stages that play the same are one stage, under the first name."""
    known: list[Stage] = []
    made: Chains = {}
    for method, stages in config.methods.items():
        chain: list[Stage] = []
        for stage in stages:
            previous = chain[-1] if chain else None
            folder = _folder(previous, stage)
            linked = Stage(folder, stage.config, tuple(stage.set), previous)
            shared = next((other for other in known if other.same_play(linked)), linked)
            if shared is linked:
                known.append(linked)
            chain.append(shared)
        made[method] = tuple(chain)
    return made


def distinct_stages(made: Chains) -> list[Stage]:
    """Every stage once, those that others start from before them."""
    return list(dict.fromkeys(stage for chain in made.values() for stage in chain))


def _folder(previous: Stage | None, stage: StageConfig) -> str:
    return stage.name if previous is None else f"{previous.folder}{THEN}{stage.name}"


def _check_method(method: str, stages: list[StageConfig]) -> None:
    names = [stage.name for stage in stages]
    for place, stage in enumerate(stages):
        if stage.name in names[:place]:
            raise ValueError(f"methods.{method} has two stages named {stage.name}: rename one")
        refused = SET_BY_EXPERIMENT + (SET_BY_CHAIN if place else ())
        for override in stage.set:
            if (key := override.partition("=")[0]) in refused:
                raise ValueError(
                    f"methods.{method}.{place}.set has {override!r}, and the experiment sets {key}"
                    f" of stage {stage.name} itself: leave it out"
                )


def _check_folders(config: ExperimentConfig) -> None:
    by_folder: dict[str, Stage] = {}
    for stage in distinct_stages(chains(config)):
        if stage.folder in by_folder:
            raise ValueError(
                f"two methods have a stage {stage.folder} that is not the same in both: rename it"
                " in one of them"
            )
        by_folder[stage.folder] = stage
