"""Between groups and rows: what each group earned, and which completions are trained with what.

Pure. A batch is N groups in a fixed order. Each of its completions has a row id; the ids of a
batch count up through its groups, the query first and then its answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.records import Completion, Group
from configs.schema import ChallengerConfig, RunConfig
from learner.advantages import (
    Credit,
    Floats,
    Outcome,
    RunningMoments,
    challenger_reward,
    quality_scores,
    solver_rewards,
    with_kl_in_reward,
)
from learner.batching import Row, merged
from learner.losses import CHALLENGER, SOLVER, row_coefficient
from rewards.diversity import repetition_penalty
from rewards.memory import QueryMemory
from rewards.reward import combine


@dataclass(frozen=True, eq=False)
class Slot:
    """A completion's place in its batch: `answer` None is the query itself."""

    group: int
    answer: int | None
    completion: Completion

    @property
    def role(self) -> int:
        """SOLVER or CHALLENGER."""
        return CHALLENGER if self.answer is None else SOLVER


def slots(groups: Sequence[Group], config: RunConfig) -> list[Slot]:
    """Return the completions to be trained; a slot's index in the list is its row id.

    Left out: queries of a data set, queries where α is 0, and completions without a token.
    """
    found: list[Slot] = []
    for g, group in enumerate(groups):
        if group.query.completion is not None and config.challenger.alpha > 0:
            found.append(Slot(g, None, group.query.completion))
        found += [Slot(g, a, answer) for a, answer in enumerate(group.answers)]
    return [slot for slot in found if len(slot.completion.token_ids) > 0]


def raw_rewards(groups: Sequence[Group], config: RunConfig) -> list[Floats]:
    """Return R [G] of each group: the weighted parts, before any standardisation."""
    empty = np.zeros(0)
    return [
        combine(group.scores, config.rewards.parts) if group.answers else empty for group in groups
    ]


def outcomes(
    groups: Sequence[Group], rewards: Sequence[Floats], config: RunConfig
) -> list[Outcome]:
    """Return what each group earned in both roles; `rewards` are R [G], standardised or not."""
    return [
        _outcome(group, reward_G, config) for group, reward_G in zip(groups, rewards, strict=True)
    ]


def moments_after(rewards: Sequence[Floats], moments: RunningMoments) -> RunningMoments:
    """Return the running moments with this batch's R taken in."""
    return moments.updated(np.concatenate([np.zeros(0), *rewards]))


def _outcome(group: Group, reward_G: Floats, config: RunConfig) -> Outcome:
    if group.reject_reason is not None:
        return Outcome(solver=np.zeros(0), challenger=0.0, rejected=True)
    quality = config.rewards.quality
    quality_G = None if quality is None else quality_scores(group.scores.verdicts)
    weight = 0.0 if quality is None else quality.weight
    solver_G = solver_rewards(reward_G, quality_G, weight)
    if not group.query.from_challenger:
        return Outcome(solver=solver_G, challenger=None)
    part = config.challenger.learnability_part
    solved_G = None if part is None else group.scores.parts[part]
    challenger = challenger_reward(
        config.challenger.reward,
        reward_G,
        quality_G,
        weight,
        solved_G,
        gated=config.challenger.quality == "gate",
    )
    return Outcome(solver_G, challenger)


@dataclass(frozen=True, eq=False)
class Diversity:
    """How a batch's queries resemble each other and those of past iterations.

    Arrays are [N], NaN for a group without answers, which counts in none of them.
    """

    repetition_N: Floats
    novelty_N: Floats
    duplicate_N: Floats

    def means(self) -> dict[str, float]:
        """Return their means over the batch."""
        return {
            "repetition": _known_mean(self.repetition_N),
            "novelty": _known_mean(self.novelty_N),
            "duplicates": _known_mean(self.duplicate_N),
        }


def diversity(groups: Sequence[Group], memory: QueryMemory, config: RunConfig) -> Diversity:
    """Return what is alike in the batch; `memory` holds the queries of past iterations only."""
    answered_N = np.array([bool(group.answers) for group in groups])
    texts = [group.query.text for group in groups if group.answers]
    found = [
        repetition_penalty(texts, config.challenger.repetition.distance),
        memory.novelty(texts),
        memory.duplicates(texts).astype(float),
    ]
    arrays = [np.full(len(groups), math.nan) for _ in found]
    for array_N, values in zip(arrays, found, strict=True):
        array_N[answered_N] = values
    return Diversity(*arrays)


def steered(earned: Sequence[Outcome], alike: Diversity, config: ChallengerConfig) -> list[Outcome]:
    """Return the outcomes with the Challenger's penalty on repetition and bonus for novelty."""
    bonus_N = config.novelty * alike.novelty_N - config.repetition.weight * alike.repetition_N
    return [
        outcome
        if outcome.challenger is None or outcome.rejected
        else replace(outcome, challenger=outcome.challenger + float(bonus))
        for outcome, bonus in zip(earned, bonus_N, strict=True)
    ]


def tasks_of(groups: Sequence[Group], config: RunConfig) -> list[str] | None:
    """Return each query's task [N], None where the Challenger's baseline is the whole batch."""
    if config.challenger.baseline == "batch":
        return None
    return [group.query.task for group in groups]


def penalised(
    earned: Sequence[Outcome], places: Sequence[Slot], kl: Mapping[int, float], beta: float
) -> list[Outcome]:
    """Return the outcomes with β·KL of each completion subtracted; `kl` by row id."""
    answers = [np.zeros_like(outcome.solver) for outcome in earned]
    queries = [0.0] * len(earned)
    for row_id, value in kl.items():
        slot = places[row_id]
        if slot.answer is None:
            queries[slot.group] = beta * value
        else:
            answers[slot.group][slot.answer] = beta * value
    return [
        with_kl_in_reward(outcome, penalty_G, penalty)
        for outcome, penalty_G, penalty in zip(earned, answers, queries, strict=True)
    ]


def unscored_rows(places: Sequence[Slot], config: RunConfig) -> list[Row]:
    """Return rows for a pass without gradient: no advantage, coefficient 1."""
    return [
        Row(i, slot.completion, slot.role, _temperature(slot.role, config))
        for i, slot in enumerate(places)
    ]


def trained_rows(places: Sequence[Slot], credit: Credit, config: RunConfig) -> list[Row]:
    """Return the rows of a training step, each with its advantage and its coefficient in L.

    Answers of a group that are the same are one row: small tasks have few different answers.
    """
    queries = len(credit.rewards_challenger)
    rows = (
        replace(
            row,
            advantage=_advantage(slot, credit),
            coefficient=_coefficient(slot, queries, config),
        )
        for row, slot in zip(unscored_rows(places, config), places, strict=True)
    )
    return merged(((slot.group, slot.role), row) for slot, row in zip(places, rows, strict=True))


def reward_metrics(
    rewards: Sequence[Floats], credit: Credit, tasks: Sequence[str] | None
) -> dict[str, float]:
    """Return means of R and of both roles' rewards, and the spread of their advantages.

    With `tasks` [N] also `alone_in_task`, the share of the Challenger's queries whose advantage is
    0 because no other is of their task.
    """
    asked = credit.rewards_challenger[~np.isnan(credit.rewards_challenger)]
    trained = credit.advantages_challenger[~np.isnan(credit.advantages_challenger)]
    metrics = {
        "value_mean": _mean(np.concatenate([np.zeros(0), *rewards])),
        "reward_solver_mean": _mean(np.concatenate([np.zeros(0), *credit.rewards_solver])),
        "advantage_solver_std": _std(np.concatenate([np.zeros(0), *credit.advantages_solver])),
        "reward_challenger_mean": _mean(asked),
        "advantage_challenger_std": _std(trained),
    }
    if tasks is not None:
        tasks_N = np.array(tasks)[~np.isnan(credit.rewards_challenger)]
        number_N = (tasks_N[:, None] == tasks_N).sum(axis=1)
        metrics["alone_in_task"] = _mean((number_N == 1).astype(np.float64))
    return metrics


def _advantage(slot: Slot, credit: Credit) -> float:
    if slot.answer is None:
        return float(credit.advantages_challenger[slot.group])
    return float(credit.advantages_solver[slot.group][slot.answer])


def _coefficient(slot: Slot, queries: int, config: RunConfig) -> float:
    return row_coefficient(
        slot.role,
        len(slot.completion.token_ids),
        queries=queries,
        answers=config.answers,
        alpha=config.challenger.alpha,
        # One constant for both roles: two would change α.
        constant=config.solver.sampling.max_tokens,
        aggregation=config.learner.aggregation,
    )


def _temperature(role: int, config: RunConfig) -> float:
    return (config.challenger if role == CHALLENGER else config.solver).sampling.temperature


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else math.nan


def _known_mean(values: Floats) -> float:
    return _mean(values[~np.isnan(values)])


def _std(values: Floats) -> float:
    return float(values.std()) if values.size else math.nan
