"""Run directories made by the real ledger and the real history, from invented games."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.records import Completion, Group, Query, Rejected, Scores, Verdict
from cluster.ledger import Ledger
from cluster.metrics import History
from cluster.record import IterationRecord, summarise
from cluster.seeds import Ticket
from configs.experiments import ExperimentConfig, StageConfig
from configs.load import load, save_resolved
from configs.schema import RunConfig
from evaluation.alpaca.rates import summarise as summarise_verdicts
from evaluation.alpaca.verdicts import verdicts_of
from evaluation.benchmark_table import definitions
from evaluation.experiment import compare
from evaluation.over_time import over_time
from evaluation.run_files import read_history
from tests.conftest import ROOT

PRESETS = ROOT / "configs"
HOSTILE = "<script>alert('x')</script> & \"quoted\" </div> {{ 7 * 7 }}"


@dataclass(frozen=True)
class Outcome:
    """What a training step says, with centred rewards as advantages."""

    metrics: dict[str, float]
    rewards_solver: list[np.ndarray]
    rewards_challenger: np.ndarray
    diversity: dict[str, float] = field(default_factory=dict)
    bad_groups: list[int] = field(default_factory=list)
    applied: bool = True

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
    rng, made = np.random.default_rng(config.seed), []
    history = History(run_dir, 0) if run_dir else None
    for iteration in range(iterations):
        groups, rejected, outcome = play(iteration, config, rng, iterations)
        record = summarise(
            iteration,
            groups,
            rejected,
            outcome,
            config.rewards.parts,
            Counter(),
            probe_difference=0.001,
            seconds=seconds_of(rng),
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


def make_run(run_dir: Path, iterations: int = 40, seed: int = 0) -> Path:
    """A finished quickstart of invented games."""
    settings = [f"run_dir={run_dir}", "queries=4", "answers=4", f"seed={seed}"]
    config = load(PRESETS / "quickstart.yaml", settings)
    save_resolved(config, run_dir)
    records(config, iterations, run_dir)
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY))
    return run_dir


def edit_history(run_dir: Path, edit: Callable[[dict], dict]) -> None:
    """Rewrite every line of a run's metrics.jsonl."""
    rows = read_history(run_dir)
    text = "".join(json.dumps(edit(row)) + "\n" for row in rows)
    (run_dir / "metrics.jsonl").write_text(text)


DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "self_bleu", "duplicates", "novelty",
             "repetition", "code_answers")  # fmt: skip
ADDED = ("admitted_share", "diversity", "probe_difference", "development", "alarms",
         "verdicts_unparsable")  # fmt: skip
"""Keys of metrics.jsonl that runs of the first versions lack."""


def watch(run_dir: Path) -> Path:
    """Add what diversity, guards, development problems and trained log-probabilities leave."""

    def watched(row: dict) -> dict:
        i = row["iteration"]
        row["learner"]["engine_logprob_difference"] = 0.01 + 0.001 * i
        row["diversity"] = {name: 0.1 * n + 0.005 * i for n, name in enumerate(DIVERSITY)}
        row["development"] = {"solved": 0.5 + 0.01 * i} if i % 4 == 3 else {}
        row["alarms"] = [f"learner.kl_solver is 0.3: {HOSTILE}"] if i == 5 else []
        return row

    edit_history(run_dir, watched)
    back = {"iteration": 8, "to": 6, "reason": f"too far {HOSTILE}", "set": ["seed=1"]}
    (run_dir / "rollbacks.json").write_text(json.dumps([back]))
    return run_dir


def out_of_data(run_dir: Path, n: int | None = None) -> Path:
    """Take away the reward of the first n queries of each iteration (None: of all of them)."""
    for path in (run_dir / "games").glob("*.parquet"):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in [row for row in rows if row["role"] == "challenger"][:n]:
            row["reward"] = None
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    return run_dir


def as_of_old(run_dir: Path) -> Path:
    """Take away what the first versions did not write."""
    edit_history(run_dir, lambda row: {k: v for k, v in row.items() if k not in ADDED})
    return run_dir


def alpaca_rows(wins: int, n: int = 60) -> list[dict]:
    """n verdicts: so many wins, every fifth of the others a tie."""
    preferences = [2.0 if i < wins else 1.5 if i % 5 == 0 else 1.0 for i in range(n)]
    np.random.default_rng(0).shuffle(preferences)
    subsets = ["koala", "vicuna", "helpful_base", f"$\\nonsense$ {HOSTILE}"]
    return [
        {
            "instruction": f"Instruction {i}",
            "dataset": subsets[i % len(subsets)],
            "output_1": "one",
            "output_2": "two",
            "generator_1": f"base {HOSTILE}",
            "generator_2": f"trained {HOSTILE}",
            "annotator": f"judge {HOSTILE}",
            "preference": preference,
        }
        for i, preference in enumerate(preferences)
    ]


def judge(run_dir: Path, iteration: int, rows: list[dict], **others: Any) -> Path:
    """Leave verdicts on one checkpoint of a run as `selfplay evaluate alpaca-eval` does."""
    result = summarise_verdicts(verdicts_of(rows)) | others
    folder = f"alpaca-eval-{iteration}"
    write_result(
        run_dir, folder, {"length_controlled_absent": "df_gamed.csv is not here", **result}
    )
    (run_dir / "evaluation" / folder / "annotations.json").write_text(json.dumps(rows))
    return run_dir


def benchmark_result(name: str, evaluation: str, metrics: dict[str, Any], **more: Any) -> dict:
    """What a benchmark of one evaluation leaves, in the form of `cluster.evaluating`."""
    summary = {
        "benchmark": name,
        "n": 1319,
        "metrics": metrics,
        "notes": [f"note {HOSTILE}"],
        **more,
    }
    return {
        "evaluation": evaluation,
        "model": f"trained {HOSTILE}",
        "benchmarks": {name: summary},
        "definitions": definitions([summary]),
        "notes": ["only the first 1319 problems of each benchmark"],
    }


def evaluate(run_dir: Path, iteration: int, wins: int = 27) -> Path:
    """Results of math, coding and AlpacaEval for one checkpoint of a run."""
    gsm8k = {
        "exact_match,strict-match": {"value": 0.3, "ci95": [0.2, 0.4]},
        "math_verify": {"value": 0.35, "ci95": None},
    }
    humaneval = {"pass@1": {"value": 0.25, "ci95": [0.19, 0.32]}}
    kinds = {"failed": 2, "passed": 1}
    results = {
        "math": benchmark_result("gsm8k", "math", gsm8k),
        "coding": benchmark_result("humaneval", "coding", humaneval, kinds=kinds),
    }
    judge(run_dir, iteration, alpaca_rows(wins))
    for name, result in results.items():
        write_result(run_dir, f"{name}-{iteration}", result)
    return run_dir


def write_result(run_dir: Path, folder: str, result: dict) -> None:
    """As `selfplay evaluate` leaves it."""
    out = run_dir / "evaluation" / folder
    out.mkdir(parents=True)
    (out / "result.json").write_text(json.dumps(result))


def measured_run(run_dir: Path, iterations: int, rates: tuple[float, float]) -> Path:
    """A run that solved these shares of 200 held-out problems before and after."""
    seed = sum(map(ord, f"{run_dir.parent.name}{run_dir.name}"))
    make_run(run_dir, iterations, seed)
    rng = np.random.default_rng(seed)
    families = {}
    for when, rate in zip(("before", "after"), rates, strict=True):
        right = rng.permutation(200) < 200 * rate
        stored = {"answers": [], "right": right.tolist(), "unverified": 0}
        (run_dir / f"heldout-{when}.json").write_text(json.dumps(stored))
        for place, family in enumerate(("sort", "reverse", "count_letters")):
            families.setdefault(family, {"n": 67})[when] = float(right[place::3].mean())
    heldout = {**SUMMARY["heldout"], "families": families}
    (run_dir / "summary.json").write_text(json.dumps({**SUMMARY, "heldout": heldout}))
    return run_dir


Stages = dict[str, dict[int, list[Path]]]


def make_experiment(root: Path, iterations: int = 8) -> tuple[ExperimentConfig, Stages]:
    """Five methods on three seeds, a chain among them; one stage has not begun."""
    preset = PRESETS / "quickstart.yaml"
    names = {"base": [], "grpo": ["grpo"], "lsp_zero": ["lsp_zero"], "lsp_learn": ["lsp_learn"],
             "grpo_lsp": ["grpo", "lsp"]}  # fmt: skip
    methods = {
        method: [StageConfig(name=name, config=preset) for name in stages]
        for method, stages in names.items()
    }
    config = ExperimentConfig(experiment_dir=root, seeds=[0, 1, 2], methods=methods)
    stages = {
        method: {
            seed: [root / f"seed-{seed}" / "+".join(chain[: n + 1]) for n in range(len(chain))]
            for seed in config.seeds
        }
        for method, chain in names.items()
    }
    after = {"grpo": 0.7, "lsp_zero": 0.55, "lsp_learn": 0.66, "grpo+lsp": 0.73}
    for name, rate in after.items():
        for seed in config.seeds:
            if (name, seed) != ("lsp_learn", 2):
                before = 0.5 + 0.02 * seed
                rates = (before, rate + 0.01 * len(name) * seed)
                run_dir = measured_run(root / f"seed-{seed}" / name, iterations, rates)
                if name == "grpo":
                    out_of_data(run_dir)
    return config, stages


def compared(stages: Stages) -> tuple[dict, dict]:
    """Figures and curves of the stages that have ended."""
    ended = {
        method: {
            seed: chain
            for seed, chain in by_seed.items()
            if all((run / "summary.json").is_file() for run in chain)
        }
        for method, by_seed in stages.items()
    }
    bases = {seed: chain[0] for seed, chain in stages["grpo"].items()}
    curves = {
        method: {seed: over_time(chain[-1]) for seed, chain in by_seed.items()}
        for method, by_seed in ended.items()
        if any(by_seed.values())
    }
    return compare(ended, bases), curves
