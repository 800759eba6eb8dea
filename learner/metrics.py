"""The learner's Prometheus metrics; every rank serves its own process's."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

LOSS = Gauge("selfplay_learner_loss", "Loss of the last step, by role", ["role"])
KL = Gauge("selfplay_learner_kl_nats", "Mean k3 per token to the reference, by role", ["role"])
ENGINE_DIFFERENCE = Gauge(
    "selfplay_learner_engine_logprob_difference_nats",
    "Mean difference to the engine's log-probabilities per trained token, where it told them",
)
IMPORTANCE_CLIPPED = Gauge(
    "selfplay_learner_importance_clipped_ratio",
    "Share of the trained tokens whose importance weight was cut at learner.importance_cap",
)
ENTROPY = Gauge("selfplay_learner_entropy_nats", "Mean entropy per trained token")
GRADIENT_NORM = Gauge("selfplay_learner_gradient_norm", "Gradient norm before clipping")
LEARNING_RATE = Gauge("selfplay_learner_learning_rate", "Learning rate of the last step")
PADDING = Gauge("selfplay_learner_padding_ratio", "Share of computed positions that is padding")
ITERATION = Gauge("selfplay_learner_iteration", "Iteration of the last step")
TOKENS = Counter("selfplay_learner_tokens_trained", "Completion tokens trained by all ranks")
STEPS = Counter("selfplay_learner_steps", "Training steps by outcome", ["outcome"])
STEP_SECONDS = Histogram(
    "selfplay_learner_step_seconds",
    "Wall time of one training step",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800),
)


def observe_step(metrics: dict[str, float], iteration: int, applied: bool) -> None:
    """Export the metrics of one step, as `Rank.step` returns them."""
    STEPS.labels("applied" if applied else "discarded").inc()
    STEP_SECONDS.observe(metrics["step_seconds"])
    PADDING.set(metrics["padding_share"])
    ITERATION.set(iteration)
    if not applied:
        return
    TOKENS.inc(metrics["tokens_trained"])
    ENTROPY.set(metrics["entropy"])
    GRADIENT_NORM.set(metrics["grad_norm"])
    LEARNING_RATE.set(metrics["learning_rate"])
    if "engine_logprob_difference" in metrics:
        ENGINE_DIFFERENCE.set(metrics["engine_logprob_difference"])
        IMPORTANCE_CLIPPED.set(metrics["importance_clipped_share"])
    for role in ("solver", "challenger"):
        LOSS.labels(role).set(metrics[f"loss_{role}"])
        if f"kl_{role}" in metrics:
            KL.labels(role).set(metrics[f"kl_{role}"])
