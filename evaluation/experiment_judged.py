"""Compares methods by AlpacaEval: what `selfplay evaluate alpaca-eval` left in their runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from evaluation.experiment import adjusted, mean_interval, paired_t
from evaluation.run_files import Row

Runs = Mapping[str, Mapping[int, Sequence[Path]]]
PER_CENT = 100
RESULTS = "alpaca-eval-*/result.json"


def compare_judged(runs: Runs) -> dict[str, Any] | None:
    """Methods and tests of the last stages that have been judged; None where none has.

    Returns:
        {reference, judge, n, methods: {name: {seeds: [{seed, win_rate, families, win, tie, loss}],
        mean, ci95}}, tests}: fractions, `win_rate` with a tie as half, `families` by subset of the
        instructions; `tests` as in `evaluation.experiment.compare`, over seeds alone.

    Raises:
        UserError: They were judged by different judges or against different models.
    """
    found = {
        method: {seed: one for seed, dirs in seeds.items() if dirs and (one := _newest(dirs[-1]))}
        for method, seeds in runs.items()
    }
    results = [one for seeds in found.values() for one in seeds.values()]
    if not results:
        return None
    reference, judge = _same(results, "reference"), _same(results, "judge")
    methods = {
        method: _method([{"seed": seed, **_row(one)} for seed, one in sorted(seeds.items())])
        for method, seeds in found.items()
    }
    rates = {
        name: {row["seed"]: row["win_rate"] for row in one["seeds"]}
        for name, one in methods.items()
    }
    pairs = [(b, a) for a, b in itertools.combinations(rates, 2)]
    tests = [_test(a, b, rates[a], rates[b]) for a, b in pairs if rates[a].keys() & rates[b].keys()]
    n = max(one["n_total"] for one in results)
    return {
        "reference": reference,
        "judge": judge,
        "n": n,
        "methods": methods,
        "tests": adjusted(tests),
    }


def _newest(run_dir: Path) -> Row | None:
    """The result of the run's newest judged checkpoint."""
    paths = (run_dir / "evaluation").glob(RESULTS)
    by_number = {
        int(n): path for path in paths if (n := path.parent.name.rpartition("-")[2]).isdigit()
    }
    return json.loads(by_number[max(by_number)].read_text("utf-8")) if by_number else None


def _same(results: Sequence[Row], key: str) -> str:
    values = sorted({str(one[key]) for one in results})
    if len(values) > 1:
        raise UserError(
            f"the stages' AlpacaEval results are not of one {key} ({', '.join(values)}): evaluate"
            " them alike to compare them"
        )
    return values[0]


def _row(result: Row) -> dict[str, Any]:
    n = result["n_total"]
    return {
        "win_rate": result["win_rate"] / PER_CENT,
        "win": result["n_wins"] / n,
        "tie": result["n_draws"] / n,
        "loss": result["n_wins_base"] / n,
        "families": {
            name: one["win_rate"] / PER_CENT
            for name, one in result["subsets"].items()
            if one["win_rate"] is not None
        },
    }


def _method(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    mean, ci95 = mean_interval([row["win_rate"] for row in seeds])
    return {"seeds": seeds, "mean": mean, "ci95": ci95}


def _test(
    method: str, against: str, mine: Mapping[int, float], others: Mapping[int, float]
) -> dict[str, Any]:
    seeds = [
        {"seed": seed, "difference": mine[seed] - others[seed]}
        for seed in sorted(mine.keys() & others.keys())
    ]
    differences = [one["difference"] for one in seeds]
    mean, ci95 = mean_interval(differences)
    t, p = paired_t(differences)
    names = {"method": method, "against": against}
    return {**names, "difference": mean, "ci95": ci95, "t": t, "p": p, "seeds": seeds}
