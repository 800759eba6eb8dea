"""Configuration of the rewards: the named parts of R, and the quality self-reward R_Q."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.base import Config, FunctionName, SamplingConfig
from configs.fleets import EngineConfig, FleetConfig, JudgeConfig

REFERENCE_VERIFIERS = (
    "rewards.verifier:exact_match",
    "rewards.verifier:math_verify",
    "rewards.code:tests_pass",
)
"""Built-in verifiers that need a reference: an answer to compare with, or tests to pass."""

VERIFIER_RESTART_S = 2.0
"""What a new process in the place of a hung or crashed one is taken to cost, in seconds."""


class RewardPart(Config):
    """What every part of R has."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """The part's name in the ledger, the metrics and the report."""
    weight: float = 1.0
    """R is the sum of weight × part."""


class PreferencePart(RewardPart):
    """A one-label sequence classifier's raw score of (query, answer)."""

    kind: Literal["preference"] = "preference"
    """What tells this kind of part."""
    model: str
    """Folder or hub id of the classifier, for example Skywork/Skywork-Reward-V2-Llama-3.2-3B."""
    fleet: EngineConfig = EngineConfig(context=8192)
    """Its engines."""


class VerifierFleetConfig(FleetConfig):
    """A fleet of verifiers, each of which takes the answers one by one."""

    deadline_s: float = Field(default=600.0, gt=0)
    """Seconds one call may take, its wait behind the others included, before its actor counts as
    hung and is replaced; a dead actor is noticed at once whatever this is. At least (staleness +
    1) × queries × answers × (`answer_deadline_s` + 2), so that hung answers alone never get
    there: while others restart, one actor may hold every call. Where it is not given, a run
    raises it to that."""


class VerifierPart(RewardPart):
    """A function `(query, answer, reference) -> float`, run in a process that can be killed."""

    kind: Literal["verifier"] = "verifier"
    """What tells this kind of part."""
    function: FunctionName
    """For example playground.language:verify or rewards.verifier:exact_match."""
    needs_reference: bool | None = None
    """Whether it compares with a reference answer. None: known for the built-in verifiers
    (true) and taken as false for others."""
    answer_deadline_s: float = Field(default=5.0, gt=0)
    """Seconds for one answer; one that takes longer scores `failed_score`."""
    failed_score: float = 0.0
    """Score of an answer whose verifier hung, crashed or raised. Where it returned no finite number
    the group is dropped, as one is whose reward is NaN."""
    fleet: VerifierFleetConfig = VerifierFleetConfig()
    """Its actors."""

    def needed_s(self, in_hand: int) -> float:
        """Seconds that one actor takes at most over `in_hand` answers.

        All of them at one: the others may be restarting, or not be there any more.
        """
        return in_hand * (self.answer_deadline_s + VERIFIER_RESTART_S)

    def with_deadline(self, in_hand: int) -> VerifierPart:
        """The part with a fleet that waits long enough, where its user set no deadline."""
        if "deadline_s" in self.fleet.model_fields_set:
            return self
        deadline_s = max(self.fleet.deadline_s, self.needed_s(in_hand))
        fleet = self.fleet.model_copy(update={"deadline_s": deadline_s})
        return self.model_copy(update={"fleet": fleet})


Part = Annotated[PreferencePart | VerifierPart, Field(discriminator="kind")]


class QualityConfig(Config):
    """The quality self-reward R_Q of the reference model with a rubric prompt."""

    weight: float = Field(default=1.0, ge=0)
    """Weight on R_Q in both roles' rewards (1 in the paper)."""
    prompt: Path | None = None
    """A file with the rubric and the slots {{instruction}} and {{response}}; None: ours."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_tokens=320)
    """How the judge writes. The paper does not state it; greedy is our choice."""
    retries: int = Field(default=1, ge=0, le=5)
    """How often an unparsable verdict is asked for again, with another seed at temperature 1."""
    fleet: JudgeConfig = JudgeConfig()
    """Its engines."""


class RewardsConfig(Config):
    """R, R_Q and how they are put together."""

    parts: list[Part] = Field(min_length=1)
    """The parts of R."""
    standardise: bool = False
    """Divide R by the running standard deviation and subtract the running mean of all R so far
    (saved with checkpoints), since the paper does not state R's scale against R_Q."""
    quality: QualityConfig | None = QualityConfig()
    """R_Q; null switches it off (LSP-Zero, GRPO)."""

    @model_validator(mode="after")
    def _names_differ(self) -> RewardsConfig:
        names = [part.name for part in self.parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two parts are named {twice[0]!r}; give each its own name")
        return self
