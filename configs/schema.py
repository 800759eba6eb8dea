"""The configuration of a run: one tree, unknown keys refused, defaults the paper's where it says.

Sections live in files of their own (`base`, `fleets`, `rewards`, `learner`); this one holds the
game (`model`, `challenger`, `solver`, `source`, `gate`) and the checks between sections.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from configs.base import Config, FunctionName, SamplingConfig
from configs.checks import check_agreement
from configs.fleets import FleetConfig, RolloutConfig
from configs.guards import GuardConfig
from configs.heldout import DevelopmentConfig, HeldoutConfig
from configs.learner import CheckpointConfig, FaultConfig, LearnerConfig, PublishConfig
from configs.rewards import PreferencePart, RewardsConfig, VerifierPart
from configs.safety import SafetyConfig
from configs.trackers import MlflowConfig, WandbConfig


class ModelConfig(Config):
    """The model that plays both roles."""

    path: str = ""
    """Folder or hub id of a causal language model with a chat template."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    make: FunctionName | None = None
    """Instead of `path`: a function `(seed, folder) -> path` that makes the model and caches it
    (the playground's base model)."""
    chat_date: datetime.date = datetime.date(2024, 7, 26)
    """Date that chat templates show instead of today's: prompts do not change by the day."""
    trust_remote_code: bool = False
    """Run model code that comes with the checkpoint."""

    @model_validator(mode="after")
    def _path_or_make(self) -> ModelConfig:
        if bool(self.path) == bool(self.make):
            raise ValueError("name the model in exactly one of model.path and model.make")
        return self


class TaskConfig(Config):
    """What one kind of query is about: the two slots of the challenger prompt."""

    task: str = ""
    """For example "Pure & Applied Mathematics"; empty: the Challenger chooses."""
    template: str = ""
    """A text for the Challenger to fill in; empty: the Challenger chooses."""
    weight: float = Field(default=1.0, gt=0)
    """How often it is drawn, relative to the others."""


class RepetitionConfig(Config):
    """A penalty within the iteration: the share of its queries in the same cluster (R-Zero,
    arXiv 2508.05004)."""

    weight: float = Field(default=0.0, ge=0)
    """0: none."""
    distance: float = Field(default=0.5, gt=0, lt=1)
    """Queries are clustered where 1 − BLEU is up to this."""


class ChallengerConfig(Config):
    """The role that writes the queries."""

    alpha: float = Field(default=1.0, ge=0)
    """α_Ch, the weight of the Challenger's loss. The paper does not state it."""
    tasks: list[TaskConfig] = Field(default=[TaskConfig()], min_length=1)
    """Tasks and templates, drawn by weight."""
    prompt: Path | None = None
    """A file with the slots {{task}} and {{template}}; None: ours."""
    sampling: SamplingConfig = SamplingConfig(max_tokens=256)
    """How queries are sampled."""
    reward: Literal["quality", "minus_v", "learnability"] = "quality"
    """quality: −V + w·V_Q (the paper's LSP). minus_v: −V (LSP-Zero). learnability:
    min(p, 1−p) + w·V_Q, p the group's mean of the verifier part `learnability_part`."""
    learnability_part: str | None = None
    """The part of R that is a solve rate in 0..1."""
    rejected: Literal["resample", "worst"] = "resample"
    """What happens to a query the gate rejects: another is sampled (and this one is not
    trained), or it is trained with the lowest Challenger reward of its iteration."""
    resample_limit: int = Field(default=8, ge=1)
    """Most samples for one admitted query, on average over the iteration, before the run stops."""
    quality: Literal["sum", "gate"] = "sum"
    """How V_Q enters `learnability`: added, or as the factor V_Q/7 (arXiv 2604.20209)."""
    baseline: Literal["batch", "task"] = "batch"
    """What a query's reward is centred on: the mean of the iteration's queries (the paper's), or
    of those of its own task, so that tasks of unequal difficulty do not crowd each other out. A
    query's reward teaches nothing where it is alone in its task."""
    repetition: RepetitionConfig = RepetitionConfig()
    """What queries lose that resemble others of their iteration."""
    novelty: float = Field(default=0.0, ge=0)
    """Weight of a query's novelty, 0 to 1, against the queries of past iterations; 0: none."""
    memory: int = Field(default=4096, ge=1, le=65536)
    """How many past queries are remembered, for novelty and for the share of duplicates."""


class SolverConfig(Config):
    """The role that answers."""

    sampling: SamplingConfig = SamplingConfig(max_tokens=1024)
    """How answers are sampled."""
    prompt: Path | None = None
    """A file with the text around each query, which takes the place of its slot `{{query}}`; None:
    the query alone."""
    system: str = ""
    """System message in front of it; empty: none."""


class DatasetConfig(Config):
    """Queries out of a file or the hub, for the data-driven baseline."""

    path: str
    """A file, or a hub id. A file is .json (one list of objects), .jsonl, .jsonl.gz or .parquet."""
    subset: str | None = None
    """Subset (configuration) of a hub data set that has several, for example GSM8K's `main`."""
    split: str = "train"
    """Split of a hub data set."""
    adapter: FunctionName | None = None
    """A function `(row) -> row` that is given every row as it was published and makes one with the
    fields below, for example evaluation.adapters:gsm8k (docs/data.md); None: rows are taken as they
    are."""
    query_field: str = "query"
    """Field with the query's text."""
    context_field: str | None = None
    """Field with a text that belongs to the query where it is not empty (Alpaca's `input`): it
    follows the query after a blank line."""
    reference_field: str | None = None
    """Field with the reference answer, for verifiers that need one."""


class SourceConfig(Config):
    """Where queries come from."""

    kind: Literal["challenger", "dataset", "mix"] = "challenger"
    """Self-play, data, or both."""
    dataset: DatasetConfig | None = None
    """The data set of `dataset` and `mix`."""
    dataset_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the queries of a mix that come out of the data set."""

    @model_validator(mode="after")
    def _dataset_where_used(self) -> SourceConfig:
        if (self.kind != "challenger") != (self.dataset is not None):
            raise ValueError("source.dataset goes with source.kind dataset or mix, and only there")
        return self


class GateConfig(Config):
    """Strict, cheap checks that decide whether a Challenger query enters training."""

    task_verifier: FunctionName | None = None
    """A function `(query) -> str | None`: None where it reads the query as a task, else why not.
    It runs in a process of its own, so it may hang or crash: that rejects the query."""
    deadline_s: float = Field(default=5.0, gt=0)
    """Seconds for `task_verifier` over one query; one that takes it longer is rejected."""
    min_characters: int = Field(default=4, ge=1)
    """Shorter queries count as empty."""
    echo_words: int = Field(default=12, ge=3)
    """A query that repeats this many consecutive words of the challenger prompt's own wording
    is an echo."""
    safety: SafetyConfig | None = None
    """A classifier that turns away hazardous or infeasible queries, asked last; null: none."""


class MetricsConfig(Config):
    """Where the figures of a run go, beside its directory."""

    host: str = "127.0.0.1"
    """Address that every metrics endpoint listens on."""
    discovery_port: int = Field(default=0, ge=0, le=65535)
    """Port of the driver's HTTP service discovery; 0: a free one, printed at the start."""
    wandb: WandbConfig | None = None
    """Weights & Biases; null: nothing is sent there."""
    mlflow: MlflowConfig | None = None
    """MLflow; null: nothing is sent there."""


class RunConfig(Config):
    """A run of Language Self-Play."""

    algorithm: Literal["lsp", "lsp_zero", "grpo"]
    """Which row of the paper's table this is; the other sections are checked against it."""
    run_dir: Path
    """The run's directory."""
    seed: int = Field(default=0, ge=0)
    """Every random choice of the run follows from it."""
    iterations: int = Field(default=500, ge=1)
    """Iterations (gradient steps) of the run."""
    queries: int = Field(default=8, ge=2)
    """N, queries per iteration (8 in the paper). At least 2: the Challenger's baseline is the
    mean over the queries."""
    answers: int = Field(default=8, ge=2)
    """G, answers per query (not stated in the paper). At least 2: the Solver's baseline is the
    mean over the answers."""
    staleness: int = Field(default=0, ge=0)
    """How many published versions generation may run ahead; 0 is the paper's on-policy game."""
    model: ModelConfig
    """The model that plays both roles."""
    challenger: ChallengerConfig = ChallengerConfig()
    """The role that writes the queries."""
    solver: SolverConfig = SolverConfig()
    """The role that answers them."""
    source: SourceConfig = SourceConfig()
    """Where queries come from."""
    gate: GateConfig = GateConfig()
    """Which of the Challenger's queries enter training."""
    rewards: RewardsConfig
    """What an answer and a query are worth."""
    rollout: RolloutConfig = RolloutConfig()
    """The engines that play both roles."""
    learner: LearnerConfig = LearnerConfig()
    """Optimiser, loss and DeepSpeed."""
    publish: PublishConfig = PublishConfig()
    """How new weights reach the engines."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    faults: FaultConfig = FaultConfig()
    """What counts as too much."""
    heldout: HeldoutConfig | None = None
    """What is measured before and after the run; null: nothing."""
    development: DevelopmentConfig | None = None
    """What is measured while it goes on; null: nothing."""
    guards: list[GuardConfig] = Field(default=[])
    """Limits, and what happens beyond them."""
    metrics: MetricsConfig = MetricsConfig()
    """Where the figures go, beside the run's directory."""
    colocate: bool = False
    """Learner and rollout engines share their GPUs; engines sleep while it learns."""

    @property
    def answers_in_hand(self) -> int:
        """Most answers that wait for their rewards at one time."""
        return _in_hand(self.staleness, self.queries, self.answers)

    @property
    def preference_parts(self) -> list[PreferencePart]:
        """The parts of R that need a reward model."""
        return [part for part in self.rewards.parts if isinstance(part, PreferencePart)]

    @property
    def verifier_parts(self) -> list[VerifierPart]:
        """The parts of R that are functions."""
        return [part for part in self.rewards.parts if isinstance(part, VerifierPart)]

    @property
    def trained_sampling(self) -> dict[str, SamplingConfig]:
        """How each role samples whose completions are trained, by the role."""
        roles = {"solver": self.solver.sampling}
        if self.source.kind != "dataset" and self.challenger.alpha > 0:
            roles["challenger"] = self.challenger.sampling
        return roles

    @property
    def fleets(self) -> dict[str, FleetConfig]:
        """Every fleet of the run by its name."""
        fleets: dict[str, FleetConfig] = {"rollout": self.rollout}
        if self.rewards.quality is not None:
            fleets["judge"] = self.rewards.quality.fleet
        fleets |= {f"reward_{part.name}": part.fleet for part in self.rewards.parts}
        if self.gate.safety is not None:
            fleets["safety"] = self.gate.safety.fleet
        return fleets

    @field_validator("rewards")
    @classmethod
    def _verifiers_have_time(cls, rewards: RewardsConfig, info: ValidationInfo) -> RewardsConfig:
        sizes = ("staleness", "queries", "answers")
        if not all(name in info.data for name in sizes):
            return rewards  # what is wrong with that one is reported
        in_hand = _in_hand(**{name: info.data[name] for name in sizes})
        parts = [
            part.with_deadline(in_hand) if isinstance(part, VerifierPart) else part
            for part in rewards.parts
        ]
        return rewards.model_copy(update={"parts": parts})

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        check_agreement(self)
        return self


def _in_hand(staleness: int, queries: int, answers: int) -> int:
    return (staleness + 1) * queries * answers
