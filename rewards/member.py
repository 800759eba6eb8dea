"""The metrics of the reward actors."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

ANSWERS = Counter(
    "selfplay_reward_answers_total",
    "Answers scored by a part of R, by how it went (scored, or the kind of failure).",
    ["part", "outcome"],
)
VERDICTS = Counter(
    "selfplay_reward_verdicts_total",
    "Quality verdicts, by how they were got (first, retried, unparsable, too_long).",
    ["outcome"],
)
SECONDS = Histogram(
    "selfplay_reward_call_seconds",
    "Time to score the answers of one query, by part of R (quality: R_Q).",
    ["part"],
    buckets=(0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600),
)
