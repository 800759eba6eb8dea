"""Methods compared by what AlpacaEval said of their last stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import UserError
from evaluation.experiment_judged import compare_judged


def judged(run_dir: Path, wins: int, checkpoint: int = 9, **others: object) -> Path:
    """A run whose checkpoint won so many of ten, with two ties."""
    block = {"n_total": 10, "n_wins": wins, "n_draws": 2, "n_wins_base": 8 - wins}
    block["win_rate"] = 10.0 * (wins + 1)
    subsets = {"koala": block, "vicuna": {**block, "win_rate": None}}
    result = {"reference": "base", "judge": "j", **block, "subsets": subsets, **others}
    folder = run_dir / "evaluation" / f"alpaca-eval-{checkpoint}"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    return run_dir


def test_rates_are_fractions_of_the_newest_checkpoint_of_the_last_stage(tmp_path):
    first = judged(tmp_path / "first", 0)
    last = judged(judged(tmp_path / "last", 3, checkpoint=100), 8, checkpoint=25)
    found = compare_judged({"base": {0: []}, "chain": {0: [first, last]}})
    assert found is not None
    (row,) = found["methods"]["chain"]["seeds"]
    assert row == {
        "seed": 0, "win_rate": 0.4, "win": 0.3, "tie": 0.2, "loss": 0.5, "families": {"koala": 0.4}
    }  # fmt: skip
    assert found["methods"]["base"]["seeds"] == []
    assert found["tests"] == []


def test_methods_are_paired_by_seed(tmp_path):
    wins = {"a": (1, 2), "b": (4, 6)}
    runs = {
        name: {seed: [judged(tmp_path / f"{name}{seed}", n)] for seed, n in enumerate(each)}
        for name, each in wins.items()
    }
    found = compare_judged(runs)
    assert found is not None
    (one,) = found["tests"]
    assert (one["method"], one["against"]) == ("b", "a")
    assert one["difference"] == pytest.approx(0.35)
    # Differences 0.3 and 0.4: t = 0.35 / 0.05 with one degree of freedom.
    assert one["t"] == pytest.approx(7.0)


def test_results_of_two_judges_are_not_compared(tmp_path):
    runs = {
        "a": {0: [judged(tmp_path / "a", 1)]},
        "b": {0: [judged(tmp_path / "b", 1, judge="other")]},
    }
    with pytest.raises(UserError, match=r"not of one judge \(j, other\)"):
        compare_judged(runs)


def test_nothing_judged_is_none(tmp_path):
    assert compare_judged({"base": {0: []}, "a": {0: [tmp_path]}}) is None
