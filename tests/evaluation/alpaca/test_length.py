"""The length-controlled win rate: from published weights, by the library's fit, or absent."""

from __future__ import annotations

import json

import numpy as np
import pytest

from configs.errors import UserError
from evaluation.alpaca import hub
from evaluation.alpaca.config import AggregateConfig, LengthControlConfig
from evaluation.alpaca.evaluate import aggregate
from evaluation.alpaca.length import length_controlled
from evaluation.alpaca.verdicts import read_verdicts, verdicts_of
from tests.evaluation.alpaca import published

HEADER = ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)"
# Published with the leaderboard (metrics/weights of tatsu-lab/alpaca_eval), judge GPT-4 Turbo.
WEIGHTS = f"""{HEADER}
gpt4_1106_preview,0.0,0.0,0.0
alpaca-7b,-2.2067864500930003,0.9859274836495522,-3.6907417919074890
Meta-Llama-3-8B-Instruct,-1.5260415796284870,1.0601549714712668,-1.6185347123220444
"""


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.csv"
    path.write_text(WEIGHTS, "utf-8")
    return path


@pytest.fixture
def no_hub(monkeypatch):
    def fail(filename):
        raise hub.UnreachableError(f"{filename} cannot be had: no network")

    monkeypatch.setattr(hub, "fetch", fail)


@published.needs_data
@pytest.mark.parametrize("model", [None, "Meta-Llama-3-8B-Instruct"])
def test_published_weights_give_the_published_rate(weights, model):
    control = LengthControlConfig(weights=weights, difficulty=published.DIFFICULTY, model=model)
    found = aggregate(AggregateConfig(annotations=published.SOFT, length_control=control))
    row = published.leaderboard_row(published.SOFT.with_stem(f"weighted__{model or 'alpaca-7b'}"))
    assert found["length_controlled_winrate"] == pytest.approx(
        float(row["length_controlled_winrate"]), abs=1e-6
    )
    assert "weights" in found["length_controlled_source"]
    assert "length_controlled_absent" not in found
    blocks = found["subsets"].values()
    mean = sum(b["n_total"] * b["length_controlled_winrate"] for b in blocks) / 805
    assert mean == pytest.approx(found["length_controlled_winrate"])


@published.needs_data
def test_difficulties_are_matched_by_instruction_or_by_place(weights, tmp_path):
    verdicts = read_verdicts(published.SOFT)
    rows = json.loads(published.DIFFICULTY.read_text("utf-8"))
    shuffled, places = tmp_path / "difficulty.json", tmp_path / "difficulty.csv"
    shuffled.write_text(json.dumps(rows[::-1]), "utf-8")
    lines = [f"{row['index']},{row['instruction_difficulty']}" for row in rows]
    places.write_text("\n".join([",instruction_difficulty", *lines]), "utf-8")
    found = [
        length_controlled(
            verdicts, LengthControlConfig(weights=weights, difficulty=path), None
        ).preference_n
        for path in (published.DIFFICULTY, shuffled, places)
    ]
    np.testing.assert_allclose(found[1], found[0])
    np.testing.assert_allclose(found[2], found[0])
    few = verdicts_of([{"preference": 2, "generator_2": "alpaca-7b"}])
    with pytest.raises(UserError, match="cannot be matched by their place"):
        length_controlled(few, LengthControlConfig(weights=weights, difficulty=places), None)


@published.needs_data
def test_a_model_without_weights_is_asked_for(weights):
    config = LengthControlConfig(weights=weights, difficulty=published.DIFFICULTY, model="nobody")
    with pytest.raises(UserError, match=r"no weights of the model 'nobody'.*length_control\.model"):
        length_controlled(read_verdicts(published.SOFT), config, None)


@published.needs_data
def test_without_the_hub_it_is_absent_and_the_reason_given(no_hub):
    found = aggregate(AggregateConfig(annotations=published.SOFT))
    assert "length_controlled_winrate" not in found
    assert "instructions are not at hand" in found["length_controlled_absent"]
    local = AggregateConfig(annotations=published.SOFT, instructions=published.INSTRUCTIONS)
    assert "df_gamed.csv cannot be had" in aggregate(local)["length_controlled_absent"]


@published.needs_data
def test_no_hub_is_asked_where_nothing_is_needed_of_it(weights, monkeypatch):
    """The rows say their subsets, and the length control has files of its own."""
    asked = []
    monkeypatch.setattr(hub, "fetch", asked.append)
    control = LengthControlConfig(weights=weights, difficulty=published.DIFFICULTY)
    aggregate(AggregateConfig(annotations=published.SOFT, length_control=control))
    assert asked == []


def test_rows_without_lengths_are_not_controlled(no_hub):
    rows = [{"instruction": str(i), "preference": 1 + i % 2} for i in range(20)]
    assert "lengths" in length_controlled(verdicts_of(rows), LengthControlConfig(), None).absent


def invented(tmp_path, n=60):
    """Verdicts that a length bias pulls up: the model's longer answers win more often."""
    rng = np.random.default_rng(0)
    texts = [f"instruction {i}" for i in range(n)]
    longer = rng.normal(200, 150, n).astype(int)
    chances = 1 / (1 + np.exp(1.0 - longer / 100))
    rows = [
        {"instruction": text, "preference": 1 + float(c), "generator_1": "a", "generator_2": "b",
         "annotator": "j", "dataset": "koala", "output_1": "x" * 400, "output_2": "x" * (400 + e)}
        for text, c, e in zip(texts, chances, np.maximum(longer, -390), strict=True)
    ]  # fmt: skip
    gamed = ["model,index,std_delta_len,preference,instruction_difficulty,not_gamed_baseline"]
    for name, shift in (("verbose", -1.0), ("concise", 1.0)):
        for i in range(n):
            length = shift + rng.normal(0, 0.3)
            chance = 1 / (1 + np.exp(1.5 * length))
            gamed.append(f"{name},{i},{length},{chance},{rng.normal()},False")
    path = tmp_path / "df_gamed.csv"
    path.write_text("\n".join(gamed), "utf-8")
    return rows, texts, path


def test_the_library_fits_with_a_local_file(tmp_path):
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    rows, texts, gamed = invented(tmp_path)
    before = sklearn.get_config()["enable_metadata_routing"], glm_winrate.hf_hub_download
    unusable = rows[0] | {"preference": "?"}
    shuffled = [*rows[30:], *rows[:30], unusable]
    found = length_controlled(verdicts_of(shuffled), LengthControlConfig(gamed=gamed), texts)
    assert (sklearn.get_config()["enable_metadata_routing"], glm_winrate.hf_hub_download) == before
    plain = np.mean([row["preference"] - 1 for row in rows])
    controlled = found.preference_n[:60].mean()
    assert found.source == "fitted by alpaca_eval"
    assert controlled < plain - 0.1, "the length bias was not taken out"
    assert found.preference_n[30] == found.preference_n[60], "places were not by instruction"


def test_the_public_tool_gives_the_same_counts_for_the_same_rows():
    from alpaca_eval.metrics import get_winrate

    from evaluation.alpaca.rates import summarise

    preferences = [1, 2, 0, 1.5, 1.25, 1.75, None, float("nan"), 3, 2, 2]
    rows = [{"preference": p} for p in preferences]
    theirs, ours = get_winrate(rows), summarise(verdicts_of(rows))
    for key in ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total"):
        assert ours[key] == pytest.approx(float(theirs[key])), key


def test_a_wrong_file_is_a_sentence(tmp_path):
    rows, texts, gamed = invented(tmp_path)
    gamed.write_text("model,index\na,0\n", "utf-8")
    with pytest.raises(UserError, match=r"df_gamed\.csv"):
        length_controlled(verdicts_of(rows), LengthControlConfig(gamed=gamed), texts)
    missing = LengthControlConfig(gamed=tmp_path / "none.csv")
    with pytest.raises(UserError, match="no such file"):
        length_controlled(verdicts_of(rows), missing, texts)
