"""Both commands from end to end, with a generator and a judge that are told what to say."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter

import matplotlib.image
import numpy as np
import pytest
from pydantic import ValidationError

from configs.errors import UserError
from evaluation.alpaca.chart import draw
from evaluation.alpaca.config import AggregateConfig, AlpacaEvalConfig, ChatJudgeConfig
from evaluation.alpaca.evaluate import aggregate
from evaluation.alpaca.instructions import SUBSETS
from evaluation.alpaca.pairwise import OURS
from evaluation.alpaca.reward_judge import RewardJudge
from evaluation.alpaca.table import table
from tests.evaluation.alpaca import published
from tests.evaluation.alpaca.contestants import (
    ROWS,
    contestant,
    run,
)
from tests.evaluation.alpaca.judge_server import GOOD, JudgeServer, completion, error


def test_answers_are_made_judged_and_added_up(tmp_path, settings):
    out, lines = tmp_path / "out", []
    model = contestant("mine@500", lambda i: i % 4 != 0)
    base = contestant("base", lambda i: i % 2 == 0)
    with JudgeServer() as server:
        result = run(settings(server.url), model, base, out, say=lines.append)
    # Per four questions: both 2 (tie), base alone 0, mine alone 1 and 3.
    assert [result[k] for k in ("n_wins", "n_wins_base", "n_draws", "n_total")] == [20, 10, 10, 40]
    assert result["win_rate"] == 62.5
    assert result["win_rate_ties_as_losses"] == 50
    assert set(result["subsets"]) == set(SUBSETS)
    assert result["judging"]["n_judged_now"] == 40
    assert result["join"]["n_missing_model"] == 0
    assert "length_controlled_winrate" not in result
    assert "df_gamed.csv" in result["length_controlled_absent"]
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert any("40 pairs to judge" in line for line in lines)

    outputs = json.loads((out / "model_outputs.json").read_text())
    assert [row["instruction"] for row in outputs] == [row["instruction"] for row in ROWS]
    assert outputs[1] == {
        "dataset": "oasst", "instruction": "question 1", "generator": "mine@500",
        "output": "a good answer, seed 1",
    }  # fmt: skip
    requests = model.generator.requests
    assert {request.sampling.temperature for request in requests} == {0.01}
    seeds = [r.seed for r in requests + base.generator.requests]
    assert len(set(seeds)) == 80, "a model would meet its own words"
    assert matplotlib.image.imread(out / "chart.png").shape[:2] > (300, 900)


def test_the_public_tool_and_our_own_command_read_the_verdicts(tmp_path, settings):
    import pandas as pd
    from alpaca_eval.metrics import get_winrate

    out = tmp_path / "out"
    model, base = contestant("mine", lambda i: i % 3 == 0), contestant("base", lambda i: i % 2 == 0)
    refuse = lambda n, p: error(400, "no") if "question 7\n" in p else None  # noqa: E731
    with JudgeServer(refuse) as server:
        run(settings(server.url), model, base, out)
    theirs = get_winrate(pd.read_json(out / "annotations.json"))
    ours = aggregate(AggregateConfig(annotations=out / "annotations.json"))
    result = json.loads((out / "result.json").read_text())
    for key in ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total"):
        assert ours[key] == result[key] == pytest.approx(float(theirs[key]))
    assert ours["n_total"] == 39
    assert ours["dropped"] == result["dropped"] == {"refused": 1}
    assert result["judging"]["n_refused"] == 1
    assert "1 rows count in no rate: 1 refused" in table(ours)
    assert "the judge refuses 1 pairs" in table(result)


def test_a_pair_without_an_answer_leaves_it_unfinished(tmp_path, settings):
    out = tmp_path / "out"
    model, base = contestant("mine", lambda i: i % 3 == 0), contestant("base", lambda i: i % 2 == 0)
    fail = lambda n, p: error(500, "oops") if "question 7\n" in p else None  # noqa: E731
    missing = pytest.raises(UserError, match="no verdict on 1 of 40 pairs")
    with JudgeServer(fail) as server, missing:
        run(settings(server.url, retries=0), model, base, out)
    result = json.loads((out / "result.json").read_text())
    assert (result["n_total"], result["judging"]["n_without_verdict"]) == (39, 1)
    assert any("no verdict on 1 of 40" in note for note in result["notes"])


def test_money_runs_out_and_the_same_command_continues(tmp_path, settings):
    out = tmp_path / "out"
    model, base = contestant("mine", lambda i: i % 4 != 0), contestant("base", lambda i: False)
    empty = error(429, "quota", "insufficient_quota")
    with JudgeServer(lambda n, p: empty if n >= 15 else None) as server:
        with pytest.raises(UserError, match=r"no money left.*the same command continues"):
            run(settings(server.url), model, base, out)
        assert len(json.loads((out / "annotations.json").read_text())) == 15
        assert json.loads((out / "result.json").read_text())["n_total"] == 15
        server.script = lambda n, p: None
        # Another process has other engines; the answers that were judged are those on disk.
        other, again = contestant("mine", lambda i: True), contestant("base", lambda i: True)
        result = run(settings(server.url), other, again, out)
    assert other.generator.requests == again.generator.requests == []
    assert result["n_total"] == 40
    assert result["n_wins"] == 30
    assert Counter(server.paid).most_common(1)[0][1] == 1


def test_nothing_judged_yet_is_a_sentence_and_keeps_the_answers(tmp_path, settings):
    out = tmp_path / "out"
    model, base = contestant("mine", lambda i: True), contestant("base", lambda i: False)
    nothing = pytest.raises(UserError, match="no verdict on 40 of 40")
    with JudgeServer(lambda n, p: error(402, "pay")) as server, nothing:
        run(settings(server.url), model, base, out)
    assert json.loads((out / "annotations.json").read_text()) == []
    assert (out / "model_outputs.json").is_file()
    nonsense = pytest.raises(UserError, match="none of the judge's 40 replies is a verdict")
    with JudgeServer(lambda n, p: completion("I prefer neither")) as server, nonsense:
        run(settings(server.url), model, base, out)


def test_a_folder_holds_one_evaluation(tmp_path, settings):
    out, base = tmp_path / "out", contestant("base", lambda i: False)
    with JudgeServer() as server:
        run(settings(server.url), contestant("mine@1", lambda i: True), base, out)
        with pytest.raises(UserError, match="another value of model: name another folder"):
            run(settings(server.url), contestant("mine@2", lambda i: True), base, out)
        longer = settings(server.url).model_copy(update={"answers": _longer()})
        with pytest.raises(UserError, match="another value of answers"):
            run(longer, contestant("mine@1", lambda i: True), base, out)
    assert len(server.prompts) == 40


def _longer():
    return AlpacaEvalConfig.model_validate({"answers": {"max_tokens": 9}}).answers


def test_answers_from_files_are_joined_and_said(tmp_path, settings):
    base, mine = tmp_path / "base.json", tmp_path / "mine.json"
    base.write_text(json.dumps([r | {"output": "plain", "generator": "base"} for r in ROWS]))
    rows = [r | {"output": f"a {GOOD} one", "generator": "mine"} for r in ROWS[::-1][:30]]
    mine.write_text(json.dumps(rows + rows[:2]))
    lines = []
    with JudgeServer() as server:
        result = run(settings(server.url), mine, base, tmp_path / "out", say=lines.append)
    assert (result["model"], result["reference"]) == ("mine", "base")
    assert result["n_wins"] == result["n_total"] == 30
    assert result["join"]["n_missing_model"] == 10
    assert result["join"]["n_doubled_model"] == 2
    assert any("lacks 10 of 40 answers" in line for line in lines)
    assert any("another order" in note for note in result["notes"])
    assert not (tmp_path / "out" / "model_outputs.json").exists()


class Lengths:
    """Prefers the longer answer, cannot score question 5, and may break in between."""

    def __init__(self, breaks_after=math.inf) -> None:
        self.breaks_after = breaks_after
        self.queries = []

    async def score(self, query, answers):
        await asyncio.sleep(0)
        if len(self.queries) >= self.breaks_after:
            await asyncio.sleep(0.05)
            raise RuntimeError("the engine is gone")
        self.queries.append(query)
        if query == "question 5":
            return np.array([1.0, np.nan])
        return np.array([float(len(answer)) for answer in answers])


def by_length(weights="a", **scorer) -> RewardJudge:
    return RewardJudge("lengths", {"weights": weights}, Lengths(**scorer))


def of_known_lengths(tmp_path):
    """Files of answers of the base and of a model, of four lengths by turns."""
    base, mine = tmp_path / "base.json", tmp_path / "mine.json"
    base.write_text(json.dumps([r | {"output": "1234", "generator": "base"} for r in ROWS]))
    said = ["12345", "123", "4321", "1234"]
    rows = [r | {"output": said[i % 4], "generator": "mine"} for i, r in enumerate(ROWS)]
    mine.write_text(json.dumps(rows))
    return mine, base


def test_a_reward_model_judges(tmp_path, settings):
    mine, base = of_known_lengths(tmp_path)
    config = settings("http://unused/v1").model_copy(update={"judge": None})
    with pytest.raises(UserError, match="name a judge"):
        run(config, mine, base, tmp_path / "out")
    result = run(config, mine, base, tmp_path / "out", judge=by_length())
    assert [result[k] for k in ("n_wins", "n_wins_base", "n_draws", "n_dropped")] == [10, 9, 20, 1]
    assert result["judge"] == "lengths"
    assert result["judging"]["n_unscored"] == 1
    assert "1 pairs could not be scored" in table(result)


def test_scores_that_came_before_an_interruption_are_kept(tmp_path, settings):
    mine, base = of_known_lengths(tmp_path)
    config = settings("http://unused/v1").model_copy(update={"judge": None})
    broken, rest, lines = by_length(breaks_after=16), by_length(), []
    with pytest.raises(RuntimeError, match="the engine is gone"):
        run(config, mine, base, tmp_path / "out", judge=broken)
    result = run(config, mine, base, tmp_path / "out", judge=rest, say=lines.append)
    queries = broken.scorer.queries + rest.scorer.queries
    # Every fourth pair is of identical outputs, which nobody scores.
    assert sorted(queries) == sorted(r["instruction"] for i, r in enumerate(ROWS) if i % 4 != 3)
    assert len(rest.scorer.queries) == 14
    replies = tmp_path / "out" / "replies.jsonl"
    assert f"lengths: scores 14 pairs, 16 are in {replies} already" in lines
    assert (result["judging"]["n_judged_now"], result["judging"]["n_judged_before"]) == (14, 16)
    assert [result[k] for k in ("n_wins", "n_wins_base", "n_draws", "n_dropped")] == [10, 9, 20, 1]
    again = by_length()
    same = run(config, mine, base, tmp_path / "out", judge=again)
    assert again.scorer.queries == []
    assert same["win_rate"] == result["win_rate"]
    with pytest.raises(UserError, match="another value of judge"):
        run(config, mine, base, tmp_path / "out", judge=by_length("b"))
    # Where no result stands yet, scores of other weights under the same name are no scores.
    (tmp_path / "out" / "result.json").unlink()
    other = by_length("b")
    run(config, mine, base, tmp_path / "out", judge=other)
    assert len(other.scorer.queries) == 30


def test_verdicts_on_the_base_give_a_paired_difference(tmp_path):
    def write(name, preferences):
        rows = [r | {"preference": p, "generator_2": name}
                for r, p in zip(ROWS, preferences, strict=True)]  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        return tmp_path / f"{name}.json"

    mine, base = write("mine", [2.0] * 30 + [1.0] * 10), write("base", [2.0] * 10 + [1.5] * 30)
    result = aggregate(AggregateConfig(annotations=mine, base_annotations=base))
    against = result["against_base"]
    assert against["n_paired"] == 40
    assert against["win_rate_difference"] == pytest.approx(75 - 62.5)
    assert against["win_rate_ties_as_losses_difference"] == pytest.approx(75 - 25)
    low, high = against["ci95_win_rate_ties_as_losses_difference"]
    assert low < 50 < high
    assert result["n_without_subset"] == 0


def test_verdicts_on_the_base_of_another_judge_or_reference_are_refused(tmp_path, settings):
    def write(name, **more):
        rows = [r | {"preference": 1 + i % 2, "generator_1": "ref", "annotator": "judge",
                     "output_1": "plain"} | more for i, r in enumerate(ROWS)]  # fmt: skip
        (tmp_path / name).write_text(json.dumps(rows))
        return tmp_path / name

    mine, right = write("mine.json"), write("right.json")
    others = {
        "the judge of .* is 'other', and of the verdicts on the model 'judge'": write(
            "judge.json", annotator="other"
        ),
        "the reference of .* is 'other', and of the verdicts on the model 'ref'": write(
            "reference.json", generator_1="other"
        ),
        "on 40 instructions the base was compared with another output of 'ref'": write(
            "outputs.json", output_1="plainer"
        ),
    }
    assert aggregate(AggregateConfig(annotations=mine, base_annotations=right))["against_base"]
    for said, path in others.items():
        with pytest.raises(UserError, match=said):
            aggregate(AggregateConfig(annotations=mine, base_annotations=path))
    # Before hours of answers.
    model, base = contestant("mine", bool), contestant("ref", bool)
    for path in [*others.values()][:2]:
        config = settings("http://127.0.0.1:9/v1").model_copy(update={"base_annotations": path})
        with pytest.raises(UserError, match="base_annotations: the"):
            run(config, model, base, tmp_path / "out")
    assert model.generator.requests == base.generator.requests == []


def test_verdicts_on_the_base_of_a_judge_that_was_asked_otherwise_are_refused(tmp_path, settings):
    """By the results beside both files of verdicts; without one there is nothing to compare."""
    base, mine, ref = tmp_path / "base", tmp_path / "mine", contestant("ref", lambda i: i % 2)
    ours = OURS / "tag.txt"
    (tmp_path / "other.txt").write_text(f"{ours.read_text()}\nThink first.")
    with JudgeServer() as server:
        run(settings(server.url), contestant("base", lambda i: i % 3), ref, base)
        other = {"prompt": tmp_path / "other.txt", "max_tokens": 9}
        run(settings(server.url, **other), contestant("mine", bool), ref, mine)
        annotations = base / "annotations.json"
        config = AggregateConfig(
            annotations=mine / "annotations.json", base_annotations=annotations
        )
        with pytest.raises(UserError, match=r"by its max_tokens, prompt: name verdicts"):
            aggregate(config)
        # Before hours of answers, and not where the judge was asked alike.
        model, asked = contestant("mine", bool), len(server.prompts)
        changed = settings(server.url, max_tokens=9).model_copy(
            update={"base_annotations": annotations}
        )
        with pytest.raises(UserError, match=r"is another one than .*, by its max_tokens: name"):
            run(changed, model, ref, tmp_path / "out")
        assert model.generator.requests == []
        assert len(server.prompts) == asked
        alike = settings(server.url).model_copy(update={"base_annotations": annotations})
        assert run(alike, model, ref, tmp_path / "out")["against_base"]["n_paired"] == 40
    (mine / "result.json").unlink()
    assert aggregate(config)["against_base"]["n_paired"] == 40


def test_rows_without_subset_and_without_instructions_say_why(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"instruction": "x", "preference": 2}]))
    result = aggregate(AggregateConfig(annotations=path))
    assert result["subsets"] == {}
    assert result["n_without_subset"] == 1
    assert any("cannot be had" in note for note in result["notes"])


@published.needs_data
def test_the_table_says_what_the_rates_say():
    result = aggregate(AggregateConfig(annotations=published.HARD))
    lines = table(result).splitlines()
    assert lines[0].startswith("alpaca-7b against text_davinci_003 judged by alpaca_eval_gpt4")
    overall = next(line.split() for line in lines if line.startswith("overall"))
    assert overall[1:6] == ["805", "25.5", "2.0", "72.5", "26.5"]
    assert [line.split()[0] for line in lines[4:9]] == list(SUBSETS)
    assert any("no length-controlled win rate: " in line for line in lines)


def test_half_characters_are_replaced_before_they_are_sent(tmp_path, settings):
    base, mine = tmp_path / "base.json", tmp_path / "mine.json"
    base.write_text(json.dumps([r | {"output": "plain", "generator": "base"} for r in ROWS]))
    mine.write_text(json.dumps([r | {"output": "half \ud83d", "generator": "mine"} for r in ROWS]))
    with JudgeServer() as server:
        result = run(settings(server.url), mine, base, tmp_path / "out")
    assert result["n_draws"] == 40
    assert "half ?" in server.prompts[0]


def test_the_chart_holds_several_models(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([r | {"preference": 1 + i % 2} for i, r in enumerate(ROWS)]))
    result = aggregate(AggregateConfig(annotations=path))
    draw({"one": result}, tmp_path / "one.png")
    draw({"one": result, "two": result, "three": result}, tmp_path / "three.png")
    one, three = (matplotlib.image.imread(tmp_path / f"{n}.png").shape for n in ("one", "three"))
    assert three[0] > 1.8 * one[0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "j", "promt": "x"}, "promt"),
        ({"model": "j", "base_url": "localhost:8000/v1"}, "address"),
        ({"model": "j", "base_url": "https://user:sk-secret@host/v1"}, "no key or password"),
        ({"model": "j", "labels": ["m", "m"]}, "two different words"),
        ({"model": "j", "max_cost": 3}, "max_cost needs price"),
        ({"model": "j", "extra_body": {"stream": True}}, "stream is no extra field"),
        ({"model": "j", "concurrency": 0}, "concurrency"),
        ({}, "model"),
    ],
)
def test_settings_that_are_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        ChatJudgeConfig.model_validate(values)


def test_the_key_is_named_where_it_is_missing(tmp_path, settings, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    model, base = contestant("mine", lambda i: True), contestant("base", lambda i: False)
    config = settings("http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY")
    with pytest.raises(UserError, match="the environment has no NO_SUCH_KEY"):
        run(config, model, base, tmp_path / "out")
    assert model.generator.requests == [], "hours of answers before the key was looked for"
    key = tmp_path / "key.txt"
    key.write_text("  sk-from-a-file\n")
    with JudgeServer() as server:
        config = settings(server.url, api_key_file=str(key))
        result = run(config, model, base, tmp_path / "out")
    assert set(server.keys) == {"Bearer sk-from-a-file"}
    assert "sk-from" not in json.dumps(result)
    key.write_text("")
    with pytest.raises(UserError, match="is empty"):
        run(settings("http://127.0.0.1:9/v1", api_key_file=str(key)), model, base, tmp_path / "new")
