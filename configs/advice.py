"""What is allowed and yet rarely meant: warnings that a run prints before it starts."""

from __future__ import annotations

from configs.schema import RunConfig

TASK_QUERIES = 2
"""Fewest queries of one task, on average, that the Challenger is to compare within it."""


def warnings(config: RunConfig) -> list[str]:
    """One sentence per setting that is likely to surprise."""
    found = [
        _literal_kl(config),
        _kl_of_reward(config),
        _unused_kl(config),
        *_nucleus(config),
        _unsolvable(config),
        _lonely(config),
        _precision(config),
    ]
    return [sentence for sentence in found if sentence]


def _literal_kl(config: RunConfig) -> str | None:
    kl = config.learner.kl
    if kl.estimator != "k1" or kl.place != "loss" or kl.coefficient == 0:
        return None
    return (
        "learner.kl: k1 in the loss, as the paper prints it, has an expected gradient of zero:"
        " the reference does not hold the policy back. learner.kl.estimator=k2 has the gradient"
        " of KL(π‖π_ref)."
    )


def _kl_of_reward(config: RunConfig) -> str | None:
    kl = config.learner.kl
    if kl.estimator == "k1" or kl.place != "reward" or kl.coefficient == 0:
        return None
    return (
        f"learner.kl: {kl.estimator} subtracted from the reward does not have the gradient of"
        " KL(π‖π_ref), and next to none near the reference. learner.kl.estimator=k1 has it there,"
        " and k2 with learner.kl.place=loss."
    )


def _unused_kl(config: RunConfig) -> str | None:
    if config.learner.kl.coefficient > 0:
        return None
    return "learner.kl.coefficient is 0: nothing holds the policy near the reference."


def _nucleus(config: RunConfig) -> list[str]:
    return [
        f"{role}.sampling.top_p is {sampling.top_p}: the engine samples from a truncated"
        " distribution that the learner does not see, so the gradient is biased."
        for role, sampling in config.trained_sampling.items()
        if sampling.top_p < 1
    ]


def _unsolvable(config: RunConfig) -> str | None:
    plays = config.source.kind != "dataset"
    if not plays or config.preference_parts or config.challenger.reward == "learnability":
        return None
    return (
        f"challenger.reward is {config.challenger.reward} and R is only right or wrong: −V is best"
        " served by what the Solver can never do. challenger.reward=learnability with"
        " challenger.learnability_part keeps the queries solvable."
    )


def _lonely(config: RunConfig) -> str | None:
    if config.challenger.baseline == "batch" or "challenger" not in config.trained_sampling:
        return None
    tasks = len({task.task for task in config.challenger.tasks})
    share = config.source.dataset_share if config.source.kind == "mix" else 0.0
    queries = round(config.queries * (1 - share), 9)  # 10 × (1 − 0.8) is two
    if queries >= TASK_QUERIES * tasks:
        return None
    return (
        f"challenger.baseline is task, and {queries:g} Challenger queries over {tasks} tasks are"
        f" {queries / tasks:.2g} of each: one that is alone in its task has advantage 0, and its"
        " reward teaches nothing. Raise queries, name fewer tasks, or set"
        " challenger.baseline=batch."
    )


def _precision(config: RunConfig) -> str | None:
    engine, learner = config.rollout.dtype, config.learner.dtype
    if engine == learner:
        return None
    return (
        f"rollout.dtype is {engine} and learner.dtype is {learner}: the engine samples from"
        " slightly other probabilities than the learner trains."
    )
