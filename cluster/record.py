"""What one iteration came to: a line of metrics.jsonl, of the console and of the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from actors.records import Group, Rejected
from configs.rewards import Part
from rewards.codelike import code_share
from rewards.diversity import query_statistics
from rewards.reward import NO_VERDICT, combine

Floats = npt.NDArray[np.float64]

CODE_SAMPLE = 256
"""Answers of an iteration that are looked at for code: the share is then right to 0.06 or so, and
a large batch does not hold up the game for seconds."""


class StepOutcome(Protocol):
    """What a training step says of its batch (`learner.group.StepResult`)."""

    @property
    def applied(self) -> bool:
        """False where a loss or gradient was NaN or infinite and the weights were left alone."""
        ...

    @property
    def bad_groups(self) -> list[int]:
        """Places in the batch of the groups whose loss was NaN or infinite."""
        ...

    @property
    def metrics(self) -> dict[str, float]:
        """Loss, KL and the like."""
        ...

    @property
    def diversity(self) -> dict[str, float]:
        """What of past queries the batch repeats: duplicates, novelty, repetition."""
        ...

    @property
    def rewards_solver(self) -> list[Floats]:
        """N arrays [G], [0] for a query without answers."""
        ...

    @property
    def rewards_challenger(self) -> Floats:
        """[N], NaN for a query the Challenger did not write."""
        ...

    @property
    def advantages_solver(self) -> list[Floats]:
        """N arrays [G], [0] for a query without answers."""
        ...

    @property
    def advantages_challenger(self) -> Floats:
        """[N], NaN for a query the Challenger did not write."""
        ...


@dataclass(frozen=True)
class IterationRecord:
    """The figures of one iteration; NaN means there was nothing to take a mean of."""

    iteration: int
    version: int
    """Policy version published at its end."""
    reward_solver: float
    """Mean of what the Solver's advantages were taken from."""
    reward_challenger: float
    """Mean of what the Challenger's advantages were taken from."""
    v: float
    """V: mean over the queries of R, the weighted sum of the parts."""
    v_quality: float
    """V_Q: mean over the queries of R_Q, raw 0…7."""
    verdicts_unparsable: float
    """Share of the quality verdicts that could not be read, those of dropped groups included."""
    parts: dict[str, float]
    """Mean of each part of R, raw; a verifier's is its solve rate."""
    learner: dict[str, float]
    """The learner's own metrics: loss, KL, gradient norm, …"""
    admitted: int
    """Queries the gate let through and that were trained."""
    admitted_share: float
    """The same over all queries that were sampled."""
    rejected: dict[str, int]
    """Queries the gate turned away, by reason."""
    dropped: dict[str, int]
    """Groups dropped and played again, by reason."""
    staleness_mean: float
    """Versions between a group's oldest token and the step that trained it."""
    staleness_max: int
    query_tokens: float
    """Mean length of the trained queries of the Challenger."""
    answer_tokens: float
    """Mean length of the answers."""
    answers_cut: float
    """Share of the answers that the token limit cut off."""
    distinct_queries: float
    """Share of different texts among all queries that were sampled."""
    diversity: dict[str, float]
    """How much the trained queries differ, and what the answers look like (`rewards.diversity`)."""
    probe_difference: float
    """Mean |Δ log-probability| of the parity probe, engine against learner, at the worst engine."""
    tokens_generated: int
    """Of queries, the rejected ones too, and answers."""
    tokens_per_second: float
    """Of generation, over the iteration's whole time."""
    seconds: dict[str, float]
    """By phase: generate, reward, wait (for the batch), train, publish, iteration."""
    development: dict[str, float] = field(default_factory=dict)
    """`solved`: solve rate of the development problems, where it was measured after this one."""
    alarms: list[str] = field(default_factory=list)
    """What the guards said."""

    def with_alarms(self, alarms: Iterable[object]) -> IterationRecord:
        """The record with what the guards said."""
        return replace(self, alarms=[str(alarm) for alarm in alarms])

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON takes it: null for NaN and infinities."""
        return _jsonable(asdict(self))


def summarise(
    iteration: int,
    groups: Sequence[Group],
    rejected: Sequence[Rejected],
    outcome: StepOutcome,
    parts: Sequence[Part],
    dropped: Counter[str],
    probe_difference: float,
    seconds: dict[str, float],
) -> IterationRecord:
    """The record of the iteration that trained `groups`."""
    answered = [group for group in groups if group.answers]
    answers = [answer for group in groups for answer in group.answers]
    turned_away = [
        *rejected,
        *(Rejected(g.query, g.reject_reason) for g in groups if g.reject_reason),
    ]
    written = [c for g in groups if (c := g.query.completion) is not None]
    wasted = [c for r in rejected if (c := r.query.completion) is not None]
    texts = [g.query.text for g in groups] + [r.query.text for r in rejected]
    staleness = [iteration - group.version_min for group in groups]
    tokens = sum(len(c.token_ids) for c in (*answers, *written, *wasted))
    means = {
        part.name: _mean([g.scores.parts[part.name].mean() for g in answered]) for part in parts
    }
    return IterationRecord(
        iteration=iteration,
        version=iteration + 1,
        reward_solver=_mean(np.concatenate([*outcome.rewards_solver, []])),
        reward_challenger=_mean(outcome.rewards_challenger),
        v=_mean([combine(group.scores, parts).mean() for group in answered]),
        v_quality=_mean([quality_of(group) for group in answered]),
        verdicts_unparsable=unparsable_share(groups, dropped[NO_VERDICT]),
        parts=means,
        learner=dict(outcome.metrics),
        admitted=len(answered),
        admitted_share=len(answered) / len(texts),
        rejected=dict(Counter(one.reason for one in turned_away)),
        dropped=dict(dropped),
        staleness_mean=_mean(staleness),
        staleness_max=max(staleness),
        query_tokens=_mean([len(c.token_ids) for c in written]),
        answer_tokens=_mean([len(c.token_ids) for c in answers]),
        answers_cut=_mean([c.finish_reason == "length" for c in answers]),
        distinct_queries=len(set(texts)) / len(texts),
        diversity=diversity_of(groups) | outcome.diversity,
        probe_difference=probe_difference,
        tokens_generated=tokens,
        tokens_per_second=tokens / seconds["iteration"],
        seconds=seconds,
    )


def diversity_of(groups: Sequence[Group]) -> dict[str, float]:
    """How much the trained queries differ from each other, and what the answers look like."""
    queries = [group.query.text for group in groups if group.answers]
    answers = [answer.text for group in groups for answer in group.answers]
    some = answers[:: math.ceil(len(answers) / CODE_SAMPLE) or 1]
    return asdict(query_statistics(queries)) | {"code_answers": code_share(some)}


def quality_of(group: Group) -> float:
    """V_Q of one query: the mean of its parsable verdicts, NaN where there is none."""
    return _mean([v.score for v in group.scores.verdicts if v.score is not None])


def unparsable_share(groups: Sequence[Group], lost: int) -> float:
    """Share of the verdicts without a score; all of `lost` more groups had none. NaN unjudged."""
    judged = [group.scores.verdicts for group in groups if group.scores.verdicts]
    missing = [verdict.score is None for verdicts in judged for verdict in verdicts]
    return _mean(missing + [True] * lost * (len(judged[0]) if judged else 0))


def _mean(values: Sequence[Any] | Floats) -> float:
    """The mean of what is not NaN, NaN where that is nothing."""
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if array.size else math.nan


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
