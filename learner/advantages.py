"""Rewards of both roles and their advantages: Algorithm 1 of Language Self-Play between two steps.

Pure numpy. Axes: N queries of the iteration, G answers to each. R is the weighted external
reward, R_Q the quality self-reward, V and V_Q their means over the G answers (arXiv 2509.07414,
section 3). Advantages are centred over the axis that each role competes on: a Solver's answer
against the other answers to its query, a Challenger's query against the iteration's other queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from actors.records import Verdict

Floats = npt.NDArray[np.float64]
ChallengerForm = Literal["quality", "minus_v", "learnability"]

MOST_QUALITY = 7
"""The highest R_Q."""
STD_EPSILON = 1e-4
"""Added to the standard deviation that advantages are divided by, as TRL's GRPO does."""


@dataclass(frozen=True)
class RunningMoments:
    """Mean and variance of all R seen so far (Welford's method, merged batch by batch).

    Immutable: a training step that is not applied leaves the old moments in force.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def updated(self, values: Floats) -> RunningMoments:
        """Return the moments with `values` (any shape) taken in."""
        if values.size == 0:
            return self
        count = self.count + values.size
        shift = float(values.mean()) - self.mean
        squares = float(((values - values.mean()) ** 2).sum())
        between = shift**2 * self.count * values.size / count
        return RunningMoments(
            count, self.mean + shift * values.size / count, self.squares + squares + between
        )

    @property
    def std(self) -> float:
        """The population standard deviation, 1 where all values so far were the same."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0

    def standardise(self, values: Floats) -> Floats:
        """Return (values − mean) / std."""
        return (values - self.mean) / self.std

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    @classmethod
    def from_state(cls, state: dict[str, float]) -> RunningMoments:
        """Rebuild from `state_dict`."""
        return cls(int(state["count"]), state["mean"], state["squares"])


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one group of the batch earned, before any advantage.

    A data-set query has `challenger` None: nobody is rewarded for it. A rejected query has no
    answers (`solver` is empty) and, with `rejected`, gets the iteration's lowest reward.
    """

    solver: Floats  # [G], or [0] where the query was rejected
    challenger: float | None
    rejected: bool = False


@dataclass(frozen=True, eq=False)
class Credit:
    """Rewards and advantages of a batch. Challenger arrays are NaN where nothing is trained."""

    rewards_solver: list[Floats]  # N arrays [G]
    rewards_challenger: Floats  # [N]
    advantages_solver: list[Floats]  # N arrays [G]
    advantages_challenger: Floats  # [N]


def quality_scores(verdicts: Sequence[Verdict]) -> Floats:
    """Return R_Q [G]: a verdict that could not be parsed counts as the mean of those that could.

    Raises ValueError where none could: such a group is dropped before it reaches the learner.
    """
    scores = np.array([math.nan if v.score is None else v.score for v in verdicts], dtype=float)
    missing = np.isnan(scores)
    if missing.all():
        raise ValueError("a group without one parsable verdict has no quality reward")
    return np.where(missing, scores[~missing].mean(), scores)


def solver_rewards(reward_G: Floats, quality_G: Floats | None, weight: float) -> Floats:
    """Return R + w·R_Q [G], or R where quality is off (LSP-Zero, GRPO)."""
    return reward_G if quality_G is None else reward_G + weight * quality_G


def challenger_reward(
    form: ChallengerForm,
    reward_G: Floats,
    quality_G: Floats | None,
    weight: float,
    solved_G: Floats | None = None,
    *,
    gated: bool = False,
) -> float:
    """Return the reward of the query whose answers earned `reward_G`.

    quality: −V + w·V_Q. minus_v: −V. learnability: min(p, 1−p) + w·V_Q, with p the mean of
    `solved_G`, a verifier's raw 0..1 (R-Zero, arXiv 2508.05004); `gated`: min(p, 1−p) · V_Q/7
    (after SGS, arXiv 2604.20209).
    """
    bonus = 0.0 if quality_G is None else weight * float(quality_G.mean())
    if form == "minus_v":
        return -float(reward_G.mean())
    if form == "quality":
        return -float(reward_G.mean()) + bonus
    if solved_G is None:
        raise ValueError("learnability needs the raw values of one verifier part")
    solved = float(solved_G.mean())
    learnable = min(solved, 1.0 - solved)
    if not gated:
        return learnable + bonus
    if quality_G is None:
        raise ValueError("a gate of quality needs verdicts")
    return learnable * float(quality_G.mean()) / MOST_QUALITY


def with_kl_in_reward(outcome: Outcome, penalty_G: Floats, penalty_query: float) -> Outcome:
    """Return the outcome with β·KL of each completion subtracted (`learner.kl.place: reward`).

    `penalty_G` [G] belongs to the answers and `penalty_query` to the query; both hold β already.
    """
    challenger = None if outcome.challenger is None else outcome.challenger - penalty_query
    return replace(outcome, solver=outcome.solver - penalty_G, challenger=challenger)


def assign_credit(
    outcomes: Sequence[Outcome], *, divide_by_std: bool, tasks: Sequence[str] | None = None
) -> Credit:
    """Turn the rewards of a batch of N groups into advantages.

    `divide_by_std` divides the Solver's advantages by their group's standard deviation. `tasks`
    [N] names each query's task where its reward is centred on those of its own task; a query
    alone in its task has advantage 0. Raises ValueError on a reward that is not finite: dropping
    such a group is the game's part.
    """
    rewards_N = _challenger_rewards(outcomes)
    solver = [outcome.solver for outcome in outcomes]
    trained = np.array([outcome.challenger is not None for outcome in outcomes], dtype=bool)
    if not all(np.isfinite(values).all() for values in [*solver, rewards_N[trained]]):
        raise ValueError("a reward is NaN or infinite; its group must be dropped, not trained")
    return Credit(
        rewards_solver=solver,
        rewards_challenger=rewards_N,
        advantages_solver=[centred(values, divide_by_std) for values in solver],
        advantages_challenger=_centred_within(rewards_N, trained, tasks),
    )


def centred(rewards_G: Floats, divide_by_std: bool = False) -> Floats:
    """Return the rewards minus their mean; `divide_by_std` as TRL has it (ddof 1, epsilon)."""
    if rewards_G.size == 0:
        return rewards_G
    centred_G = rewards_G - rewards_G.mean()
    if not divide_by_std:
        return centred_G
    return centred_G / (rewards_G.std(ddof=1) + STD_EPSILON)


def _challenger_rewards(outcomes: Sequence[Outcome]) -> Floats:
    """Return the Challenger's rewards [N], rejected queries at the lowest of the admitted ones."""
    rewards_N = np.array(
        [math.nan if o.challenger is None else o.challenger for o in outcomes], dtype=float
    )
    admitted = [o.challenger for o in outcomes if o.challenger is not None and not o.rejected]
    rejected = np.array([o.rejected for o in outcomes], dtype=bool)
    # With no admitted query all rejected ones are equal, and nothing is learnt from them.
    rewards_N[rejected] = min(admitted, default=0.0)
    return rewards_N


def _centred_within(
    rewards_N: Floats, trained_N: npt.NDArray[np.bool_], tasks: Sequence[str] | None
) -> Floats:
    """The Challenger's advantages [N], centred over all trained queries or within each task."""
    if tasks is None:
        return _centred_where(rewards_N, trained_N)
    task_N = np.array(tasks)
    advantages_N = np.full_like(rewards_N, math.nan)
    for task in np.unique(task_N):
        own_N = trained_N & (task_N == task)
        advantages_N[own_N] = _centred_where(rewards_N, own_N)[own_N]
    return advantages_N


def _centred_where(rewards_N: Floats, trained_N: npt.NDArray[np.bool_]) -> Floats:
    if not trained_N.any():
        return np.full_like(rewards_N, math.nan)
    return np.where(trained_N, rewards_N - rewards_N[trained_N].mean(), math.nan)
