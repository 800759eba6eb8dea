"""Configuration of `selfplay evaluate` where a model answers; unknown keys are refused.

Where a run is evaluated, its own configuration gives the defaults of what is about the model.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from pydantic import Field

from configs.base import Config, SamplingConfig
from configs.fleets import EngineConfig, RolloutConfig
from evaluation.alpaca.config import AlpacaEvalConfig

CHAT_DATE = datetime.date(2024, 7, 26)
"""As in the section `model` of a run."""


class EvaluationConfig(Config):
    """What every evaluation needs: a model that answers."""

    revision: str | None = None
    """Branch, tag or commit of the evaluated hub repository."""
    chat_date: datetime.date = CHAT_DATE
    """Date that chat templates show instead of today's; a run's own."""
    trust_remote_code: bool = False
    """Run model code that comes with the checkpoint."""
    prompt: Path | None = None
    """A file with the text around each query, as `solver.prompt`, which is a run's own."""
    system: str = ""
    """System message in front of it, empty: none; a run's own is `solver.system`."""
    rollout: RolloutConfig = RolloutConfig()
    """The engines; a run's own, else chosen by the machine and the model's context."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first n problems of each benchmark; of AlpacaEval's instructions n in all, the first
    of each subset by turns. The result says so."""


class DataConfig(Config):
    """Local JSON-lines files (also .gz) of the benchmarks' rows; null: from the hub."""

    gsm8k: Path | None = None
    """GSM8K's test problems: `question`, `answer`."""
    math500: Path | None = None
    """MATH-500: `problem`, `answer`."""
    humaneval: Path | None = None
    """HumanEval: `task_id`, `prompt`, `entry_point`, `test`."""
    mbpp: Path | None = None
    """MBPP: `task_id`, `text`, `test_setup_code`, `test_list`; its test split is taken."""
    ifeval: Path | None = None
    """IFEval's prompts: `key`, `prompt`, `instruction_id_list`, `kwargs`."""


class GreedyConfig(SamplingConfig):
    """How the problems of a benchmark are answered."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 is greedy."""
    max_tokens: int = Field(default=1024, ge=1)
    """Most new tokens of an answer."""


class BenchmarkConfig(EvaluationConfig):
    """`selfplay evaluate math|coding|ifeval RUN|MODEL`."""

    sampling: GreedyConfig = GreedyConfig()
    """How answers are sampled, one for each query."""
    data: DataConfig = DataConfig()
    """Where the problems are."""


class JudgedConfig(EvaluationConfig):
    """`selfplay evaluate alpaca-eval RUN|MODEL`."""

    alpaca: AlpacaEvalConfig = AlpacaEvalConfig()
    """Instructions, answers, judge and rates."""
    reward_fleet: EngineConfig = EngineConfig()
    """The engines of a reward model that judges (`--reward-judge`); their defaults are chosen by
    the machine and the model's context."""
