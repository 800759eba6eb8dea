"""What is allowed and yet rarely meant: warnings that a run prints before it starts."""

from __future__ import annotations

from configs.schema import RunConfig


def warnings(config: RunConfig) -> list[str]:
    """One sentence per setting that is likely to surprise."""
    found = [
        _literal_kl(config),
        _unused_kl(config),
        *_nucleus(config),
        _unsolvable(config),
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


def _precision(config: RunConfig) -> str | None:
    engine, learner = config.rollout.dtype, config.learner.dtype
    if engine == learner:
        return None
    return (
        f"rollout.dtype is {engine} and learner.dtype is {learner}: the engine samples from"
        " slightly other probabilities than the learner trains."
    )
