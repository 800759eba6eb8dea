"""The driver's metrics: Prometheus, RUN/metrics.jsonl, trackers.

All are fed from one `IterationRecord` per iteration; what is looked up at each scrape is in
`cluster.scraping`. Names are listed in docs/metrics.md.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from cluster.record import IterationRecord
from cluster.trackers import Tracker
from configs.errors import UserError, naming
from evaluation.run_files import read_history

log = logging.getLogger(__name__)

ITERATION = Gauge("selfplay_iteration", "Iterations trained")
ITERATIONS_TARGET = Gauge("selfplay_iterations_target", "Iterations the run is to train")
STOPPING = Gauge("selfplay_stopping", "1 once the run was asked to stop before its end")
VERSION = Gauge("selfplay_policy_version", "Version of the policy that was published last")
REWARD = Gauge("selfplay_reward", "Mean reward of the last iteration, by role", ["role"])
VALUE = Gauge("selfplay_value", "V: mean external reward R of the last iteration")
QUALITY = Gauge("selfplay_quality", "V_Q: mean quality reward of the last iteration, 0 to 7")
UNPARSABLE = Gauge(
    "selfplay_verdicts_unparsable_ratio", "Share of the quality verdicts that could not be read"
)
PART = Gauge("selfplay_reward_part", "Mean of a named part of R in the last iteration", ["part"])
ADMITTED = Counter("selfplay_queries_admitted", "Queries that were admitted and trained")
ADMITTED_SHARE = Gauge(
    "selfplay_queries_admitted_ratio", "Share of the sampled queries that were admitted"
)
REJECTED = Counter("selfplay_queries_rejected", "Queries the gate rejected, by reason", ["reason"])
DROPPED = Counter("selfplay_groups_dropped", "Groups dropped and played again", ["reason"])
STALENESS = Gauge("selfplay_staleness_versions", "Versions from a group's oldest token to its step")
STALENESS_MAX = Gauge("selfplay_staleness_max_versions", "The same for the stalest group")
QUERY_TOKENS = Gauge("selfplay_query_tokens", "Mean length of the Challenger's trained queries")
ANSWER_TOKENS = Gauge("selfplay_answer_tokens", "Mean length of the answers")
CUT = Gauge("selfplay_answers_cut_ratio", "Share of the answers that the token limit cut off")
DISTINCT = Gauge("selfplay_distinct_queries_ratio", "Share of different texts among the queries")
DIVERSITY = Gauge(
    "selfplay_diversity_ratio",
    "How much the queries differ, by measure (docs/metrics.md)",
    ["kind"],
)
PROBE = Gauge("selfplay_probe_difference_nats", "Engine against learner on the parity probe, worst")
DEVELOPMENT = Gauge("selfplay_development_solved_ratio", "Solve rate of the development problems")
ALARMS = Counter("selfplay_guard_alarms", "Alarms of the guards", ["metric", "action"])
TOKENS = Counter("selfplay_tokens_generated", "Tokens of queries (rejected ones too) and answers")
PHASE_SECONDS = Counter("selfplay_phase_seconds", "Seconds spent, by phase", ["phase"])
ITERATION_SECONDS = Histogram(
    "selfplay_iteration_seconds",
    "Wall time of one iteration",
    buckets=(0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800),
)


def begin(iteration: int, iterations: int) -> None:
    """Export where a life of the run begins: what was published before it counts no more."""
    ITERATION.set(iteration)
    ITERATIONS_TARGET.set(iterations)
    STOPPING.set(0)
    VERSION.set(0)


def observe(record: IterationRecord, iterations: int) -> None:
    """Export one iteration to Prometheus."""
    ITERATION.set(record.iteration + 1)
    ITERATIONS_TARGET.set(iterations)
    VERSION.set(record.version)
    REWARD.labels("solver").set(record.reward_solver)
    REWARD.labels("challenger").set(record.reward_challenger)
    VALUE.set(record.v)
    QUALITY.set(record.v_quality)
    UNPARSABLE.set(record.verdicts_unparsable)
    for name, value in record.parts.items():
        PART.labels(name).set(value)
    ADMITTED_SHARE.set(record.admitted_share)
    STALENESS.set(record.staleness_mean)
    STALENESS_MAX.set(record.staleness_max)
    QUERY_TOKENS.set(record.query_tokens)
    ANSWER_TOKENS.set(record.answer_tokens)
    CUT.set(record.answers_cut)
    DISTINCT.set(record.distinct_queries)
    PROBE.set(record.probe_difference)
    for kind, value in record.diversity.items():
        DIVERSITY.labels(kind).set(value)
    if record.development:
        DEVELOPMENT.set(record.development["solved"])
    _count(record)


def _count(record: IterationRecord) -> None:
    ADMITTED.inc(record.admitted)
    for reason, count in record.rejected.items():
        REJECTED.labels(reason).inc(count)
    for reason, count in record.dropped.items():
        DROPPED.labels(reason).inc(count)
    TOKENS.inc(record.tokens_generated)
    for phase, seconds in record.seconds.items():
        if phase != "iteration":
            PHASE_SECONDS.labels(phase).inc(max(seconds, 0.0))
    ITERATION_SECONDS.observe(record.seconds["iteration"])


def scalars(record: IterationRecord) -> Iterator[tuple[str, float]]:
    """The numbers of a record as `section/name`, those that are NaN left out."""
    for name, value in record.as_dict().items():
        if isinstance(value, dict):
            nested = ((f"{name}/{key}", item) for key, item in value.items())
            yield from ((key, float(item)) for key, item in nested if item is not None)
        elif isinstance(value, int | float) and name != "iteration":
            yield f"game/{name}", float(value)


class History:
    """RUN/metrics.jsonl, RUN/tensorboard and what else tracks the run, from `iteration` on.

    Whatever an earlier life of the run wrote of later iterations is taken out, since they are
    played again; so is a line that a crash cut short.
    """

    def __init__(self, run_dir: Path, iteration: int, trackers: Sequence[Tracker] = ()) -> None:
        # torch takes seconds to import, which only a run should pay.
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        self.path = run_dir / "metrics.jsonl"
        kept = [row for row in read_history(run_dir) if row["iteration"] < iteration]
        unfinished = self.path.with_suffix(".tmp")
        with naming(self.path):
            unfinished.write_text("".join(f"{json.dumps(row)}\n" for row in kept), "utf-8")
            unfinished.replace(self.path)
        self._folder = run_dir / "tensorboard"
        self._board = SummaryWriter(str(self._folder), purge_step=iteration)
        self._trackers = trackers

    def write(self, record: IterationRecord) -> None:
        """Add one iteration. Raises UserError where the run directory is gone."""
        try:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(record.as_dict(), allow_nan=False)}\n")
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError:
            raise UserError(
                f"{self.path} cannot be written: the run directory is gone while the run goes on"
            ) from None
        figures = dict(scalars(record))
        with naming(self._folder):
            for name, value in figures.items():
                self._board.add_scalar(name, value, record.iteration)
        for tracker in self._trackers:
            tracker.write(record.iteration, figures)

    def close(self) -> None:
        """Write out what TensorBoard holds back, where the disk takes it: the rest has ended."""
        try:
            self._board.close()
        except OSError as error:
            log.warning("the end of %s is not written: %s", self._folder, error)
