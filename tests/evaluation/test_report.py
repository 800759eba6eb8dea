"""The report: one page, nothing from the network, model text as text."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.load import load, save_resolved
from evaluation.charts import running_mean
from evaluation.report import moments, rejection_counts, write_report
from evaluation.run_files import read_history
from tests.evaluation.synthetic import HOSTILE, PRESETS, make_run, records


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), 12)


@pytest.fixture(scope="module")
def page(run) -> str:
    return write_report(run).read_text()


def test_model_text_is_escaped(page):
    assert "<script" not in page
    assert str(html.escape(HOSTILE)).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert "49" not in re.findall(r"\{\{ 7 \* 7 \}\}|>49<", page)


class Links(HTMLParser):
    """Collects everything a browser would fetch, and checks that elements nest."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        names = ("src", "href", "xlink:href", "data", "srcset", "action")
        self.fetched += [v for k, v in attrs if k in names and v and not v.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_fetches_nothing(page):
    parser = Links()
    parser.feed(page)
    assert parser.fetched == []
    assert parser.open == []
    assert not re.search(r"url\((?!#)|@import", page)


def test_every_curve_is_there_and_what_has_no_data_is_not(page):
    shown = re.findall(r'role="img" aria-label="([^"]+)"', page)
    assert shown == [
        *("Solver's reward", "Challenger's reward", "V and its parts", "Quality V_Q"),
        *("KL to the reference", "Entropy", "Gradient norm"),
        *("Admitted queries", "Different queries", "Lengths", "Answers cut off"),
        *("Tokens per second", "Seconds by phase", "Staleness"),
    ]


def test_the_result_the_families_and_the_configuration_are_shown(page):
    for words in ("64.4%", "78.9%", "+14.5 points", "+11.8 to +17.2", "sort", "git_commit"):
        assert words in page
    assert "learnability_part: solved" in page


def test_ids_of_the_drawings_do_not_collide(page):
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    clips = [set(re.findall(r'clipPath id="([^"]+)"', drawing)) for drawing in drawings]
    assert len(set.union(*clips)) == sum(map(len, clips))


def test_games_are_of_the_first_the_last_and_iterations_between(run):
    shown = moments(run, 12)
    numbers = [moment.iteration for moment in shown]
    assert numbers[0] == 1
    assert numbers[-1] == 12
    assert len(numbers) == 8
    for moment in shown:
        hard, easy = (game.query["reward"] for game in moment.games)
        assert hard >= easy
        for game in moment.games:
            rewards = [answer["reward"] for answer in game.answers]
            assert rewards == sorted(rewards, reverse=True)
            assert {answer["group_id"] for answer in game.answers} == {game.query["group_id"]}


def test_undone_games_are_not_shown(run, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "games" / "undone").mkdir()
    (copy / "games" / "000011.parquet").rename(copy / "games" / "undone" / "000011-0.parquet")
    assert [moment.iteration for moment in moments(copy, 12)][-1] != 12


def test_rejections_are_counted_over_the_whole_run(run):
    history = read_history(run)
    counts = dict(rejection_counts(history))
    assert sum(counts.values()) == sum(sum(row["rejected"].values()) for row in history)


def test_a_run_of_one_iteration_without_quality_or_held_out_problems(tmp_path):
    config = load(
        PRESETS / "quickstart.yaml",
        ["algorithm=lsp_zero", "rewards.quality=null", "queries=2", "answers=2"],
    )
    save_resolved(config, tmp_path)
    records(config, 1, tmp_path)
    rows = read_history(tmp_path)
    for row in rows:
        row |= {"v_quality": None, "learner": {"grad_norm": None}}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(tmp_path).read_text()
    assert "Quality V_Q" not in page
    assert "KL to the reference" not in page
    assert "Means over the first and the last tenth" in page


def test_a_run_without_an_iteration_is_refused(tmp_path):
    save_resolved(load(PRESETS / "quickstart.yaml"), tmp_path)
    with pytest.raises(UserError, match=r"no iteration to report on yet"):
        write_report(tmp_path)


def test_running_mean_leaves_out_what_is_missing():
    values = np.array([1.0, np.nan, 3.0, 5.0, np.nan, np.nan])
    assert running_mean(values, 2).tolist()[:5] == [1.0, 1.0, 3.0, 4.0, 5.0]
    assert np.isnan(running_mean(values, 2)[5])
