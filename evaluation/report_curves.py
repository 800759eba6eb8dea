"""The curves of a run's report, out of its metrics.jsonl; a key that a run lacks is left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evaluation.charts import Chart
from evaluation.run_files import Row

Values = list[float]
Reader = Callable[[str], Values]
Sections = dict[str, list[Chart]]

TOP = 1.03
"""Upper end of an axis of shares: a line at 1 is seen whole."""
REASONS = 5
"""Reasons of rejection that have a curve; the table has all."""


def sections(history: Sequence[Row]) -> Sections:
    """The curves by what they are about."""
    return {
        "Rewards": _rewards(history),
        "Learning": _learning(history),
        "Diversity": _diversity(reader(history), reader(history, "diversity")),
        "Gates": _gates(history),
        "Lengths": _lengths(reader(history)),
        "Timing": _timing(history),
    }


def reader(history: Sequence[Row], section: str | None = None) -> Reader:
    """Returns the values of a key by iteration, NaN where the run does not say."""
    rows = [row.get(section) or {} for row in history] if section else history
    return lambda key: [math.nan if row.get(key) is None else row[key] for row in rows]


def _rewards(history: Sequence[Row]) -> list[Chart]:
    of = reader(history)
    values = {"V": of("v")}
    parts = {name: reader(history, "parts")(name) for name in history[-1]["parts"]}
    values |= {name: means for name, means in parts.items() if means != values["V"]}
    return [
        Chart("Solver's reward", "mean over the answers", {"": of("reward_solver")}),
        Chart("Challenger's reward", "mean over its queries", {"": of("reward_challenger")}),
        Chart("V and its parts", "mean external reward R", values),
        Chart("Quality V_Q", "the reference model's verdict R_Q, 0 to 7", {"": of("v_quality")}),
        Chart("Unparsable verdicts", "share of the verdicts", {"": of("verdicts_unparsable")}, 0),
    ]


def _learning(history: Sequence[Row]) -> list[Chart]:
    of, learner = reader(history), reader(history, "learner")
    solved = {"": reader(history, "development")("solved")}
    kl = {"Solver": learner("kl_solver"), "Challenger": learner("kl_challenger")}
    differences = {
        "probe": of("probe_difference"), "trained tokens": learner("engine_logprob_difference")
    }  # fmt: skip
    return [
        Chart("Development problems", "share solved, greedily", solved, 0, TOP, sparse=True),
        Chart("KL to the reference", "nats per token, by role", kl),
        Chart("Entropy", "nats per trained token", {"": learner("entropy")}),
        Chart("Gradient norm", "before clipping", {"": learner("grad_norm")}),
        Chart("Engine against learner", "difference of log-probabilities, nats", differences, 0),
    ]


def _diversity(of: Reader, diversity: Reader) -> list[Chart]:
    def share(title: str, note: str, key: str) -> Chart:
        return Chart(title, note, {"": diversity(key)}, 0, TOP)

    n_grams = {f"n = {n}": diversity(f"distinct_{n}") for n in (1, 2, 3)}
    different = {"": of("distinct_queries")}
    return [
        Chart("Distinct n-grams", "of the queries' words, over all of them", n_grams, 0, TOP),
        share("Self-BLEU", "of a query against the iteration's others; 1: all alike", "self_bleu"),
        Chart("Different queries", "share of the texts of an iteration", different, 0, TOP),
        share("Duplicates", "share of the queries that a past iteration had", "duplicates"),
        share("Novelty", "mean, against the queries of past iterations", "novelty"),
        share("Repetition", "mean share of the queries in a query's cluster", "repetition"),
        share("Answers like code", "share of the answers", "code_answers"),
    ]


def _gates(history: Sequence[Row]) -> list[Chart]:
    admitted = [_part(row["admitted"], sampled(row)) for row in history]
    shares = {
        reason: [_part(row["rejected"].get(reason, 0), sampled(row)) for row in history]
        for reason, _ in counted(history, "rejected")[:REASONS]
    }
    return [
        Chart("Admitted queries", "share of the queries sampled", {"": admitted}, 0, TOP),
        Chart("Rejected queries", "share of the queries sampled, by reason", shares, 0),
    ]


def _lengths(of: Reader) -> list[Chart]:
    return [
        Chart("Queries", "mean tokens", {"": of("query_tokens")}, 0),
        Chart("Answers", "mean tokens", {"": of("answer_tokens")}, 0),
        Chart("Answers cut off", "share that reached the token limit", {"": of("answers_cut")}, 0),
    ]


def _timing(history: Sequence[Row]) -> list[Chart]:
    of, seconds = reader(history), reader(history, "seconds")
    phases = {name: seconds(name) for name in phases_of(history)}
    staleness = {"mean": of("staleness_mean"), "largest": of("staleness_max")}
    return [
        Chart("Tokens per second", "generated, over the whole iteration",
              {"": of("tokens_per_second")}, 0),
        Chart("Seconds by phase", "of one iteration", phases, 0),
        Chart("Staleness", "versions, oldest token to step", staleness, 0),
    ]  # fmt: skip


def phases_of(history: Sequence[Row]) -> list[str]:
    """The phases of an iteration that took any time."""
    names = dict.fromkeys(name for row in history for name in row["seconds"])
    return [n for n in names if n != "iteration" and any(r["seconds"].get(n) for r in history)]


def timing(history: Sequence[Row]) -> list[dict[str, Any]]:
    """By phase and for whole iterations: seconds in all, a mean iteration's, share of its time."""
    totals = {
        name: sum(row["seconds"].get(name) or 0.0 for row in history)
        for name in (*phases_of(history), "iteration")
    }
    whole = totals["iteration"]
    return [
        {
            "phase": name,
            "total": total,
            "mean": total / len(history),
            "share": total / whole if whole else None,
        }
        for name, total in totals.items()
    ]


def sampled(row: Row) -> int:
    """Queries that an iteration sampled, the rejected ones too."""
    return row["admitted"] + sum(row["rejected"].values())


def counted(history: Sequence[Row], key: str) -> list[tuple[str, int]]:
    """Counts by reason over the whole run, most frequent first."""
    total: Counter[str] = Counter()
    for row in history:
        counts: Mapping[str, int] = row.get(key) or {}
        total.update(counts)
    return total.most_common()


def _part(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
