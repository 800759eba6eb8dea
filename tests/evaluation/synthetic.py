"""A run directory made by the real ledger and the real history, from invented games."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.records import Completion, Group, Query, Rejected, Scores, Verdict
from cluster.ledger import Ledger
from cluster.metrics import History
from cluster.record import IterationRecord, summarise
from cluster.seeds import Ticket
from configs.load import load, save_resolved
from configs.schema import RunConfig

PRESETS = Path(__file__).parents[2] / "configs"
HOSTILE = "<script>alert('x')</script> & \"quoted\" </div> {{ 7 * 7 }}"


@dataclass(frozen=True)
class Outcome:
    """What a training step says, with centred rewards as advantages."""

    metrics: dict[str, float]
    rewards_solver: list[np.ndarray]
    rewards_challenger: np.ndarray
    bad_groups: tuple[int, ...] = ()

    @property
    def advantages_solver(self) -> list[np.ndarray]:
        return [rewards_G - rewards_G.mean() for rewards_G in self.rewards_solver]

    @property
    def advantages_challenger(self) -> np.ndarray:
        return self.rewards_challenger - np.nanmean(self.rewards_challenger)


def completion(text: str, version: int) -> Completion:
    tokens = np.arange(len(text.split()) + 1, dtype=np.int32)
    return Completion(np.arange(4, dtype=np.int32), tokens, text, "stop", version, version, 7)


def make_group(ticket: Ticket, text: str, solved: Sequence[bool]) -> Group:
    query = Query(ticket.group_id, text, completion=completion(text, ticket.round))
    answers = tuple(
        completion("a b c d e f" if right else f"a c b {HOSTILE}", ticket.round) for right in solved
    )
    verdicts = tuple(Verdict(6 if right else 4, f"It is {right}.") for right in solved)
    return Group(query, answers, Scores({"solved": np.array(solved, float)}, verdicts))


def play(iteration: int, config: RunConfig, rng: np.random.Generator, total: int):
    """(groups, rejected, outcome) of one invented iteration, the Solver slowly improving."""
    rate = 0.55 + 0.3 * iteration / total
    groups = [
        make_group(
            Ticket(iteration, slot),
            HOSTILE
            if slot == 0
            else f"Sort the letters of {' '.join(rng.permuted(list('badcfe')))}.",
            (rng.random(config.answers) < rate).tolist(),
        )
        for slot in range(config.queries)
    ]
    rejected = [
        Rejected(
            Query(Ticket(iteration, 0, 1).group_id, "Sort", completion=completion("Sort", 0)), r
        )
        for r in rng.choice(["duplicate", "task_unknown_task"], rng.integers(0, 4))
    ]
    quality = [np.array([v.score for v in g.scores.verdicts], float) for g in groups]
    solved = [g.scores.parts["solved"] for g in groups]
    challenger = [
        min(s.mean(), 1 - s.mean()) + q.mean() for s, q in zip(solved, quality, strict=True)
    ]
    metrics = {
        "kl_solver": 0.02 * math.sqrt(iteration),
        "kl_challenger": 0.01 * math.sqrt(iteration),
        "entropy": 1.1 - 0.3 * iteration / total,
        "grad_norm": float(rng.gamma(4, 0.2)),
    }
    solver = [s + q for s, q in zip(solved, quality, strict=True)]
    return groups, rejected, Outcome(metrics, solver, np.array(challenger))


def seconds_of(rng: np.random.Generator) -> dict[str, float]:
    parts = dict(
        zip(["generate", "reward", "train", "publish"], rng.gamma(9, 0.05, 4), strict=True)
    )
    return {**parts, "wait": 0.0, "iteration": sum(parts.values())}


def records(
    config: RunConfig, iterations: int, run_dir: Path | None = None
) -> list[IterationRecord]:
    """Records of invented iterations; with `run_dir`, written there as a run writes them."""
    rng, made = np.random.default_rng(0), []
    history = History(run_dir, 0) if run_dir else None
    for iteration in range(iterations):
        groups, rejected, outcome = play(iteration, config, rng, iterations)
        record = summarise(
            iteration, groups, rejected, outcome, config.rewards.parts, Counter(), seconds_of(rng)
        )
        made.append(record)
        if run_dir and history:
            Ledger(run_dir).write(iteration, groups, rejected, outcome)
            history.write(record)
    if history:
        history.close()
    return made


SUMMARY = {
    "algorithm": "lsp",
    "seed": 0,
    "iterations": 40,
    "heldout": {
        "n": 1000,
        "before": 0.644,
        "after": 0.789,
        "difference": 0.145,
        "ci95_before": [0.614, 0.673],
        "ci95_after": [0.763, 0.813],
        "ci95_difference": [0.118, 0.172],
        "invented_by_challenger": 12,
        "after_without_invented": 0.787,
        "unverified_before": 0,
        "unverified_after": 0,
        "in_dataset": 0,
        "families": {"sort": {"n": 500, "before": 0.5, "after": 0.75}},
    },
    "wall_s": {"setup": 21.4, "base_model": 75.0, "train": 161.2},
    "tokens": {"generated": 2_345_678, "trained": 2_001_002},
    "versions": {"ray": "2.60.0"},
}


def make_run(run_dir: Path, iterations: int = 40) -> Path:
    """A finished quickstart of invented games."""
    config = load(PRESETS / "quickstart.yaml", [f"run_dir={run_dir}", "queries=4", "answers=4"])
    save_resolved(config, run_dir)
    records(config, iterations, run_dir)
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY))
    return run_dir
