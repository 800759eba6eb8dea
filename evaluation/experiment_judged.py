"""Compares methods by AlpacaEval: what `selfplay evaluate alpaca-eval` left in their runs.

Only whole judgements of last checkpoints are compared, all on the same instructions; what is left
out is named with the reason. Rates are fractions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from evaluation.alpaca.bootstrap import bootstrap_mean
from evaluation.alpaca.files import read_object
from evaluation.alpaca.protocol import differing
from evaluation.alpaca.rates import DEFINITIONS
from evaluation.alpaca.verdicts import DRAW, counted, read_verdicts
from evaluation.experiment import (
    OVERALL,
    Inside,
    estimate,
    mean_interval,
    paired_t,
    paired_tests,
)
from evaluation.run_files import Row, last_checkpoint

Runs = Mapping[str, Mapping[int, Sequence[Path]]]
Verdicts = Mapping[str, float]
"""Preference in [1, 2] by instruction, NaN where the judge gave no verdict or refused."""

PER_CENT = 100
EVALUATION = "alpaca-eval-"
"""Begins the names of the folders of results, behind it the checkpoint."""
RATES: Mapping[str, Callable[[float], float]] = {
    "win_rate": lambda preference: preference - 1,
    "win_rate_ties_as_losses": lambda preference: float(preference > DRAW),
}
"""What a preference counts in each of the two win rates."""


@dataclass(frozen=True)
class Judgement:
    """What the judge said of one model: the rates, and the verdicts they come from."""

    folder: Path
    result: Row
    verdicts: Verdicts

    @property
    def checkpoint(self) -> int:
        """The iteration that was judged."""
        return int(self.folder.name.removeprefix(EVALUATION))


def compare_judged(runs: Runs) -> dict[str, Any] | None:
    """Methods and tests of the last stages that have been judged; None where none has.

    Returns:
        {reference, judge, definitions, n, methods, means, tests, tests_ties_as_losses, unjudged,
        notes}, n the number of instructions.
        methods: {name: {seeds: [{seed, checkpoint, n, win_rate, win_rate_ties_as_losses, win, tie,
        loss, families, subsets}], mean, ci95}}, `mean` and `families` of `win_rate`; seeds that
        share a judgement, as a base's may, have one row.
        means: {rate: {method: {subset: {mean, ci95, over}}}} of both rates, see `estimate`.
        tests: as in `evaluation.experiment.compare`, within a seed over the instructions.
        unjudged: [{method, seed, reason}] of what is not in these figures.

    Raises:
        UserError: They were judged by different judges or against different models.
    """
    judged, reasons = _comparable(runs)
    results = [one.result for seeds in judged.values() for one in seeds.values()]
    if not results:
        return None
    verdicts = {m: {s: one.verdicts for s, one in seeds.items()} for m, seeds in judged.items()}
    _judged_alike(results)
    half, losses = (paired_tests(verdicts, _within(count)) for count in RATES.values())
    methods = {method: _method(seeds) for method, seeds in judged.items()}
    return {
        "reference": _same(results, "reference"),
        "judge": _same(results, "judge"),
        "definitions": {rate: DEFINITIONS[rate] for rate in RATES},
        "n": max(len(one) for seeds in verdicts.values() for one in seeds.values()),
        "methods": methods,
        "means": {
            rate: {method: _means(one["seeds"], rate) for method, one in methods.items()}
            for rate in RATES
        },
        "tests": half,
        "tests_ties_as_losses": losses,
        "unjudged": [{"method": m, "seed": s, "reason": why} for (m, s), why in reasons.items()],
        "notes": _notes(judged),
    }


def _comparable(
    runs: Runs,
) -> tuple[dict[str, dict[int, Judgement]], dict[tuple[str, int], str]]:
    """By method and seed, whole judgements on the same instructions, and why others are not."""
    found = {
        (method, seed): judgement_of(dirs[-1])
        for method, seeds in runs.items()
        for seed, dirs in seeds.items()
        if dirs
    }
    whole = {key: one for key, one in found.items() if isinstance(one, Judgement)}
    texts = _instructions(whole.values())
    judged: dict[str, dict[int, Judgement]] = {method: {} for method in runs}
    reasons: dict[tuple[str, int], str] = {}
    for (method, seed), one in found.items():
        if isinstance(one, str):
            reasons[method, seed] = one
        elif reason := _other_instructions(one, texts):
            reasons[method, seed] = reason
        else:
            judged[method][seed] = one
    return judged, reasons


def judgement_of(run_dir: Path) -> Judgement | str:
    """The judgement of a run's last checkpoint, or why there is none that is whole."""
    paths = (run_dir / "evaluation").glob(f"{EVALUATION}*/result.json")
    folders = {
        int(n): path.parent
        for path in paths
        if (n := path.parent.name.removeprefix(EVALUATION)).isdigit()
    }
    if not folders:
        return "has not been judged"
    newest, last = max(folders), last_checkpoint(run_dir)
    if last is not None and last not in folders:
        return f"has been judged at checkpoint {newest} and not at its last, {last}"
    folder = folders[newest if last is None else last]
    result = read_object(folder / "result.json", "the rates of AlpacaEval")
    account = result.get("judging", {})
    if account.get("n_without_verdict"):
        return (
            f"has no verdict yet on {account['n_without_verdict']} of {account['n_pairs']} pairs,"
            " and the same command continues"
        )
    path = folder / "annotations.json"
    if not path.is_file():
        return f"has lost {path}, which the same command writes anew"
    read = read_verdicts(path)
    rows = zip(read.instruction_n, read.preference_n, strict=True)
    return Judgement(folder, result, {text: float(value) for text, value in rows if text})


def _instructions(judgements: Collection[Judgement]) -> frozenset[str]:
    """The instructions that most were judged on, of as many the larger set."""
    distinct = {one.folder: frozenset(one.verdicts) for one in judgements}
    sets = Counter(distinct.values())
    return max(sets, key=lambda texts: (sets[texts], len(texts)), default=frozenset())


def _other_instructions(one: Judgement, texts: frozenset[str]) -> str | None:
    """What differs where a judgement is not on these instructions."""
    mine = frozenset(one.verdicts)
    if mine == texts:
        return None
    return (
        f"was judged on {len(mine & texts)} of the {len(texts)} instructions of the others and on"
        f" {len(mine - texts)} more, so remove {one.folder} and judge it like them"
    )


def _same(results: Sequence[Row], key: str) -> str:
    values = sorted({str(one[key]) for one in results})
    if len(values) > 1:
        raise UserError(
            f"the stages' AlpacaEval results are not of one {key} ({', '.join(values)}): evaluate"
            " them alike to compare them"
        )
    return values[0]


def _judged_alike(results: Sequence[Row]) -> None:
    """Refuse verdicts of one judge that was asked in several ways."""
    keys = differing([one.get("settings", {}).get("judge", {}) for one in results])
    if keys:
        raise UserError(
            f"the stages' AlpacaEval results differ in the judge's {', '.join(keys)}: evaluate them"
            " alike to compare them"
        )


def _method(judged: Mapping[int, Judgement]) -> dict[str, Any]:
    first: dict[Path, int] = {}
    for seed, one in sorted(judged.items()):
        first.setdefault(one.folder, seed)
    rows = [{"seed": seed, **_row(judged[seed])} for seed in first.values()]
    mean, ci95 = mean_interval([row["win_rate"] for row in rows])
    return {"seeds": rows, "mean": mean, "ci95": ci95}


def _row(one: Judgement) -> dict[str, Any]:
    result = one.result
    blocks = {OVERALL: result, **result["subsets"]}
    subsets = {name: _block(block) for name, block in blocks.items() if block["n_total"]}
    n = result["n_total"]
    return {
        "checkpoint": one.checkpoint,
        "n": n,
        **{rate: subsets[OVERALL][rate] for rate in RATES},
        "win": result["n_wins"] / n,
        "tie": result["n_draws"] / n,
        "loss": result["n_wins_base"] / n,
        "families": {m: block["win_rate"] for m, block in subsets.items() if m != OVERALL},
        "subsets": subsets,
    }


def _block(block: Row) -> dict[str, Any]:
    """n, the two win rates and their intervals over the instructions, as fractions."""
    made: dict[str, Any] = {"n": block["n_total"]}
    for rate in RATES:
        ends = block[f"ci95_{rate}"]
        made[rate] = block[rate] / PER_CENT
        made[f"ci95_{rate}"] = None if ends is None else [end / PER_CENT for end in ends]
    return made


def _means(seeds: Sequence[Row], rate: str) -> dict[str, dict[str, Any]]:
    """By subset, and overall, `estimate` of a rate; of one seed, its bootstrap interval."""
    names = dict.fromkeys([OVERALL, *(name for row in seeds for name in row["subsets"])])
    blocks = {n: [row["subsets"][n] for row in seeds if n in row["subsets"]] for n in names}
    return {
        name: estimate(
            [block[rate] for block in each],
            each[0][f"ci95_{rate}"] if each else None,
            "instructions",
        )
        for name, each in blocks.items()
    }


def _within(count: Callable[[float], float]) -> Inside[Verdicts]:
    """What tests two models on the instructions on which both have a verdict."""

    def test(others: Verdicts, mine: Verdicts) -> dict[str, Any] | None:
        pairs = [(mine[text], others[text]) for text in mine if text in others]
        known = [pair for pair in pairs if not any(map(math.isnan, pair))]
        gains = np.array([count(my) - count(other) for my, other in known], np.float64)
        if not known:
            return None
        t, p = paired_t(gains.tolist())
        return {
            "n": len(gains),
            "difference": float(gains.mean()),
            "ci95": bootstrap_mean(gains),
            "t": t,
            "p": p,
        }

    return test


def _notes(judged: Mapping[str, Mapping[int, Judgement]]) -> list[str]:
    """Sentences on verdicts that count in no rate."""
    return [
        f"{method}, seed {seed}: {dropped} of {len(one.verdicts)} pairs have no verdict and count"
        f" in no rate ({counted(one.result['dropped'])})"
        for method, seeds in judged.items()
        for seed, one in seeds.items()
        if (dropped := sum(map(math.isnan, one.verdicts.values())))
    ]
