"""The report: one page, nothing from the network, model text as text."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cluster.seeds import Ticket
from configs.errors import UserError
from configs.load import load, save_resolved
from evaluation.charts import Chart, draw_chart, running_mean
from evaluation.report import alarms_of, write_report
from evaluation.report_curves import counted, sections, timing
from evaluation.report_evaluations import read_evaluations
from evaluation.report_games import moments, spread
from evaluation.run_files import read_history
from tests.evaluation.synthetic import (
    HOSTILE,
    PRESETS,
    as_of_old,
    edit_history,
    evaluate,
    make_run,
    out_of_data,
    records,
    watch,
    write_result,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with all that a report can show."""
    return evaluate(watch(make_run(tmp_path_factory.mktemp("run"), 12)), 12)


@pytest.fixture(scope="module")
def page(run) -> str:
    return write_report(run).read_text()


def escaped(text: str) -> str:
    return html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


@pytest.mark.parametrize(
    "words",
    ["{}", "a c b {}", "judged by judge {}", "trained {} against base {}", "$\\nonsense$ {}",
     "gsm8k: note {}", "learner.kl_solver is 0.3: {}", "too far {}"],
)  # fmt: skip
def test_what_models_and_judges_write_is_escaped(page, words):
    assert "<script" not in page
    assert escaped(words.replace("{}", HOSTILE)) in page
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


def shown(page: str) -> list[str]:
    """The titles of the charts."""
    return re.findall(r'role="img" aria-label="([^"]+)"', page)


def test_every_curve_is_there(page):
    assert shown(page) == [
        *("Win, tie and loss", "Win rate, ties as half", "Win rate, ties as losses"),
        *("Solver&#39;s reward", "Challenger&#39;s reward", "V and its parts", "Quality V_Q"),
        "Unparsable verdicts",
        *("Development problems", "KL to the reference", "Entropy", "Gradient norm"),
        *("Engine against learner", "Distinct n-grams", "Self-BLEU", "Different queries"),
        *("Duplicates", "Novelty", "Repetition", "Answers like code"),
        *("Queries", "Answers", "Answers cut off", "Admitted queries", "Rejected queries"),
        *("Tokens per second", "Seconds by phase", "Staleness"),
    ]


def test_what_a_run_does_not_have_is_left_out(tmp_path):
    page = write_report(as_of_old(make_run(tmp_path / "run", 3))).read_text()
    absent = {"Development problems", "Engine against learner", "Self-BLEU", "Novelty"}
    assert not {*absent, "Unparsable verdicts"} & set(shown(page))
    assert "Different queries" in shown(page)
    for anchor in ("alarms", "evaluations"):
        assert f'id="{anchor}"' not in page
        assert f'href="#{anchor}"' not in page


def test_the_result_the_families_and_the_configuration_are_shown(page):
    for words in ("64.4%", "78.9%", "+14.5 points", "+11.8 to +17.2", "sort", "git commit"):
        assert words in page
    assert "learnability_part: solved" in page


def test_ids_of_the_drawings_do_not_collide(page):
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    clips = [set(re.findall(r'clipPath id="([^"]+)"', drawing)) for drawing in drawings]
    assert len(set.union(*clips)) == sum(map(len, clips))


def test_games_are_of_the_first_the_last_and_iterations_between(run):
    found = moments(run, spread(12))
    numbers = [moment.iteration for moment in found]
    assert numbers[0] == 1
    assert numbers[-1] == 12
    assert len(numbers) == 8
    for moment in found:
        hard, easy = (game.query["reward"] for game in moment.games)
        assert hard >= easy
        for game in moment.games:
            rewards = [answer["reward"] for answer in game.answers]
            assert rewards == sorted(rewards, reverse=True)
            assert {answer["group_id"] for answer in game.answers} == {game.query["group_id"]}


BY_REWARD = "the query with the highest and the one with the lowest reward for the Challenger"
THE_FIRST = "the first two queries, since they come out of a data set"


def test_games_of_a_data_set_are_the_first_ones_and_the_page_says_so(run, page, tmp_path):
    data_run = out_of_data(make_run(tmp_path / "run", 2))
    for moment in moments(data_run, [0, 1]):
        assert not moment.ranked
        assert [game.query["group_id"] for game in moment.games] == [
            Ticket(moment.iteration - 1, slot).group_id for slot in (0, 1)
        ]
    data_page = write_report(data_run).read_text()
    assert THE_FIRST in data_page
    assert BY_REWARD not in data_page
    assert f"{BY_REWARD}, each with its best" in page
    assert THE_FIRST not in page


def test_of_a_mix_the_games_of_the_challengers_own_queries_are_shown(tmp_path):
    mixed = out_of_data(make_run(tmp_path / "run", 1), 2)
    (moment,) = moments(mixed, [0])
    assert moment.ranked
    assert {game.query["group_id"] for game in moment.games} == {
        Ticket(0, slot).group_id for slot in (2, 3)
    }
    hard, easy = (game.query["reward"] for game in moment.games)
    assert hard >= easy


def test_undone_games_are_not_shown(run, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "games" / "undone").mkdir()
    (copy / "games" / "000011.parquet").rename(copy / "games" / "undone" / "000011-0.parquet")
    assert [moment.iteration for moment in moments(copy, spread(12))][-1] != 12


def test_rejections_are_counted_over_the_whole_run(run):
    history = read_history(run)
    counts = counted(history, "rejected")
    assert sum(n for _, n in counts) == sum(sum(row["rejected"].values()) for row in history)
    assert counts == sorted(counts, key=lambda one: -one[1])


def test_admitted_and_rejected_shares_are_of_what_was_sampled(run):
    history = read_history(run)
    admitted, rejected = sections(history)["Gates"]
    for place, row in enumerate(history):
        shares = [curve[place] for curve in (*admitted.curves.values(), *rejected.curves.values())]
        assert sum(shares) == pytest.approx(1)
        assert shares[0] == pytest.approx(row["admitted_share"])


def test_timing_sums_the_phases_of_all_iterations(run):
    history = read_history(run)
    by_phase = {row["phase"]: row for row in timing(history)}
    assert "wait" not in by_phase  # it took no time
    trained = sum(row["seconds"]["train"] for row in history)
    whole = sum(row["seconds"]["iteration"] for row in history)
    assert by_phase["train"]["total"] == pytest.approx(trained)
    assert by_phase["train"]["mean"] == pytest.approx(trained / 12)
    assert by_phase["train"]["share"] == pytest.approx(trained / whole)
    assert by_phase["iteration"]["share"] == 1


def test_alarms_are_of_their_iteration_and_too_many_are_counted(run, tmp_path):
    assert alarms_of(read_history(run)) == [(6, f"learner.kl_solver is 0.3: {HOSTILE}")]
    loud = make_run(tmp_path / "run", 2)
    edit_history(loud, lambda row: row | {"alarms": [f"{n} is too much" for n in range(40)]})
    page = write_report(loud).read_text()
    assert page.count("is too much") == 50
    assert "30 earlier ones" in page


def test_evaluations_are_by_checkpoint_and_name_both_win_rates(page, run):
    found = read_evaluations(run)
    assert [(one.benchmark, one.checkpoint, one.value, one.ci95) for one in found.benchmarks] == [
        ("gsm8k", "iteration 12", 0.3, [0.2, 0.4]),
        ("gsm8k", "iteration 12", 0.35, None),
        ("humaneval", "iteration 12", 0.25, [0.19, 0.32]),
    ]
    (one,) = found.judged
    # 27 wins and 6 ties in 60.
    assert [rate["value"] for rate in one.blocks["overall"]["rates"]] == [50.0, 45.0]
    assert one.blocks["overall"]["tie"] == 10.0
    assert len(one.blocks) == 5
    for words in ("win_rate<", "win_rate_ties_as_losses<", "50.0 ± ", "45.0 ± ", "df_gamed.csv"):
        assert words in page


def test_a_result_of_another_form_is_named_and_the_others_are_shown(tmp_path):
    run = evaluate(make_run(tmp_path / "run", 2), 2)
    for n, text in enumerate(["{", "[]", '{"benchmarks": {"a": 1}}', '{"subsets": {}}']):
        write_result(run, f"odd-{n}", {})
        (run / "evaluation" / f"odd-{n}" / "result.json").write_text(text)
    found = read_evaluations(run)
    assert [len(found.benchmarks), len(found.judged)] == [3, 1]
    page = write_report(run).read_text()
    for n, sentence in enumerate(found.unreadable):
        assert sentence.startswith(f"evaluation/odd-{n}/result.json cannot be shown")
        assert escaped(sentence) in page


def test_a_run_of_one_iteration_without_quality_or_held_out_problems(tmp_path):
    config = load(
        PRESETS / "quickstart.yaml",
        ["algorithm=lsp_zero", "rewards.quality=null", "queries=2", "answers=2"],
    )
    save_resolved(config, tmp_path)
    records(config, 1, tmp_path)
    rows = read_history(tmp_path)
    for row in rows:
        row |= {"v_quality": None, "learner": {"grad_norm": None}, "diversity": None}
        row["verdicts_unparsable"] = None
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(tmp_path).read_text()
    assert "Quality V_Q" not in page
    assert "Unparsable verdicts" not in page
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


def test_a_sparse_curve_shows_its_points_where_they_are():
    nan = float("nan")
    chart = Chart("Solved", "", {"a": [nan, 0.5, nan, 0.6], "none": [nan] * 4}, sparse=True)
    drawing = draw_chart(chart, [1, 2, 3, 4])
    assert drawing.svg.count("<use") >= 2
    assert [name for _, name in drawing.legend] == ["a"]


def test_a_curve_keeps_its_colour_where_one_before_it_has_no_data():
    nan = float("nan")
    both = draw_chart(Chart("x", "", {"a": [1.0], "b": [2.0]}), [1]).legend
    one = draw_chart(Chart("x", "", {"a": [nan], "b": [2.0]}), [1]).legend
    assert one == both[1:]
