"""Win rates: the published leaderboards to the last digit, and worked numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from evaluation.alpaca.bootstrap import bootstrap_mean
from evaluation.alpaca.config import AggregateConfig
from evaluation.alpaca.evaluate import aggregate
from evaluation.alpaca.rates import rates, summarise
from evaluation.alpaca.verdicts import read_verdicts, verdicts_of
from tests.evaluation.alpaca import published

COUNTS = ("n_wins", "n_wins_base", "n_draws", "n_total")


@published.needs_data
@pytest.mark.parametrize("path", published.annotations(), ids=lambda path: path.stem)
def test_published_verdicts_give_the_published_row(path):
    found = summarise(read_verdicts(path))
    row = published.leaderboard_row(path)
    for key in ("win_rate", "standard_error", "discrete_win_rate", *COUNTS):
        assert found[key] == pytest.approx(float(row[key]), abs=1e-6), key
    low, high = found["ci95_win_rate"]
    assert (high - low) / 2 == pytest.approx(1.96 * found["standard_error"], rel=0.1)
    assert low < found["win_rate"] < high


@published.needs_data
@pytest.mark.parametrize("path", published.annotations(), ids=lambda path: path.stem)
def test_subsets_part_the_whole(path):
    found = summarise(read_verdicts(path))
    subsets = found["subsets"]
    assert {name: block["n_total"] for name, block in subsets.items()} == {
        "selfinstruct": 252, "oasst": 188, "koala": 156, "helpful_base": 129, "vicuna": 80,
    }  # fmt: skip
    for key in COUNTS:
        assert sum(block[key] for block in subsets.values()) == found[key]
    mean = sum(block["n_total"] * block["win_rate"] for block in subsets.values()) / 805
    assert mean == pytest.approx(found["win_rate"])
    same_fields = found.keys() & rates(np.array([1.0, 2.0])).keys()
    assert all(same_fields <= block.keys() for block in subsets.values())


@published.needs_data
@pytest.mark.parametrize("path", published.annotations(), ids=lambda path: path.stem)
def test_published_verdicts_in_other_clothes(path, tmp_path):
    """Floats for integers, 1.5 for 0, another order, no subsets: the same rates."""
    rows = json.loads(path.read_text("utf-8"))
    bare = [
        {"instruction": r["instruction"], "preference": float(r["preference"]) or 1.5}
        for r in reversed(rows)
    ]
    (tmp_path / "bare.json").write_text(json.dumps(bare), "utf-8")
    config = AggregateConfig(
        annotations=tmp_path / "bare.json", instructions=published.INSTRUCTIONS
    )
    found, whole = aggregate(config), summarise(read_verdicts(path))
    for key in ("win_rate", "standard_error", *COUNTS):
        assert found[key] == pytest.approx(whole[key])
    assert found["subsets"].keys() == whole["subsets"].keys()
    assert found["subsets"]["koala"]["win_rate"] == pytest.approx(
        whole["subsets"]["koala"]["win_rate"]
    )
    assert found["n_without_subset"] == 0


def rows(preferences, subset="koala"):
    return [
        {"instruction": f"{subset} {i}", "preference": p, "dataset": subset}
        for i, p in enumerate(preferences)
    ]


def test_the_two_definitions_by_hand():
    found = rates(np.array([2.0, 2.0, 1.5, 1.5, 1.5, 1.0, 1.75, 1.1]))
    assert found["win_rate"] == pytest.approx(100 * (2 + 1.5 + 0 + 0.75 + 0.1) / 8)
    assert found["win_rate_ties_as_losses"] == pytest.approx(100 * 3 / 8)
    assert found["discrete_win_rate"] == pytest.approx(100 * (3 + 1.5) / 8)
    assert [found[key] for key in COUNTS] == [3, 2, 3, 8]
    share, n = 3 / 8, 8
    assert found["standard_error_ties_as_losses"] == pytest.approx(
        100 * math.sqrt(share * (1 - share) / (n - 1))
    )


def test_a_model_against_its_own_copy_gets_50_and_less():
    found = rates(np.array([1.5] * 6 + [1.0, 2.0] * 2))
    assert found["win_rate"] == 50
    assert found["win_rate_ties_as_losses"] == 20


def test_few_and_equal_verdicts_have_no_invented_precision():
    none, one = rates(np.array([])), rates(np.array([2.0]))
    assert none["n_total"] == 0
    assert none["win_rate"] is none["standard_error"] is none["ci95_win_rate"] is None
    assert one["win_rate"] == 100
    assert one["standard_error"] is one["ci95_win_rate"] is None
    assert rates(np.full(50, 2.0))["ci95_win_rate"] is None


def test_dropped_rows_change_no_rate_and_stand_in_the_result():
    bad = [{"preference": None, "dataset": "koala"}, {"preference": 9}, "x"]
    clean = summarise(verdicts_of(rows([1, 2, 2, 1.5])))
    dirty = summarise(verdicts_of([*rows([1, 2, 2, 1.5]), *bad]))
    assert dirty["n_dropped"] == 3
    assert dirty["dropped"] == {"missing": 1, "outside_1_to_2": 1, "not_an_object": 1}
    for key in ("win_rate", "standard_error", "ci95_win_rate", "subsets", *COUNTS):
        assert dirty[key] == clean[key]


def test_rows_without_a_subset_are_in_the_whole_and_counted():
    found = summarise(verdicts_of([*rows([2, 1]), {"preference": 2}]))
    assert found["n_total"] == 3
    assert found["subsets"]["koala"]["n_total"] == 2
    assert found["n_without_subset"] == 1


def test_subsets_come_in_a_fixed_order_with_strangers_last():
    names = ["zoo", "vicuna", "selfinstruct", "art"]
    items = [row for name in names for row in rows([1, 2], name)]
    assert list(summarise(verdicts_of(items))["subsets"]) == [
        "selfinstruct", "vicuna", "art", "zoo",
    ]  # fmt: skip


def test_the_result_is_json():
    found = summarise(verdicts_of(rows([2])), verdicts_of(rows([1])))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_against_the_base_pairs_by_instruction():
    model = rows([2, 2, 1.5, 1, 2], "koala") + rows([2], "oasst")
    base = list(reversed(rows([2, 1, 1.5, 2, 1], "koala")))  # oasst's was not judged
    found = summarise(verdicts_of(model), verdicts_of(base))
    whole = found["against_base"]
    assert whole["n_paired"] == 5
    assert whole["win_rate_difference"] == pytest.approx(100 * (0 + 1 + 0 - 1 + 1) / 5)
    assert whole["win_rate_ties_as_losses_difference"] == pytest.approx(100 * (1 - 1 + 1) / 5)
    assert found["subsets"]["koala"]["against_base"] == whole
    assert found["subsets"]["oasst"]["against_base"]["win_rate_difference"] is None


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(1)
    base = np.where(rng.random(400) < 0.5, 2.0, 1.0)
    model = np.where(rng.random(400) < 0.1, 3 - base, base)
    found = summarise(verdicts_of(rows(model)), verdicts_of(rows(base)))["against_base"]
    low, high = found["ci95_win_rate_difference"]
    width = high - low
    alone_low, alone_high = summarise(verdicts_of(rows(model)))["ci95_win_rate"]
    assert width < 0.7 * (alone_high - alone_low) * math.sqrt(2)


def test_coverage_of_the_bootstrap():
    rng = np.random.default_rng(0)
    draws = rng.choice([0.0, 0.5, 1.0], p=[0.5, 0.2, 0.3], size=(60, 100))
    intervals = [bootstrap_mean(values) for values in draws]
    covered = np.mean([low <= 0.4 <= high for low, high in intervals])
    assert 0.87 <= covered <= 0.99


def test_the_same_verdicts_give_the_same_interval():
    values = np.random.default_rng(3).random(50)
    assert bootstrap_mean(values) == bootstrap_mean(values)
