"""The report of an experiment: tables, curves, games, links, and what is missing."""

from __future__ import annotations

import re

import pytest

from configs.experiments import ExperimentConfig
from evaluation.experiment_judged import compare_judged
from evaluation.experiment_page import families_of
from evaluation.report_experiment import (
    drawn_curves,
    lines,
    places_of,
    samples,
    versions,
    write_experiment_report,
)
from evaluation.report_games import moments
from tests.evaluation.synthetic import (
    HOSTILE,
    alpaca_rows,
    compared,
    evaluate,
    judge,
    make_experiment,
    make_run,
)
from tests.evaluation.test_report import Links, escaped, shown


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> tuple[ExperimentConfig, dict]:
    config, stages = make_experiment(tmp_path_factory.mktemp("one") / "experiment", 3)
    (stages["grpo_lsp"][0][1] / "report.html").write_text("a stage's own page")
    return config, stages


@pytest.fixture(scope="module")
def page(experiment) -> str:
    config, stages = experiment
    failed = [f"seed-2/lsp_learn failed: {HOSTILE}"]
    return write_experiment_report(config, stages, *compared(stages), failed).read_text()


def test_means_and_intervals_are_over_the_seeds(experiment):
    _, stages = experiment
    figures, _ = compared(stages)
    by_method = {line.method: line for line in lines(figures)}
    assert list(by_method) == ["base", "grpo", "lsp_zero", "lsp_learn", "grpo_lsp"]
    # 0.70, 0.74, 0.78: mean 0.74, and 4.30265 × 0.04 / √3 around it.
    grpo = by_method["grpo"]
    (solved,) = grpo.overall
    assert (grpo.seeds, solved["mean"]) == (3, pytest.approx(0.74))
    assert solved["ci95"] == pytest.approx([0.74 - 0.099366, 0.74 + 0.099366], abs=1e-5)
    assert by_method["lsp_learn"].seeds == 2
    assert families_of(figures) == ["sort", "reverse", "count_letters"]
    sort = grpo.rates["heldout"]["sort"]
    seeds = [one["families"]["sort"] for one in figures["methods"]["grpo"]["seeds"]]
    assert sort["mean"] == pytest.approx(sum(seeds) / 3)
    assert sort["ci95"] is not None


def test_the_figures_stand_on_the_page(page):
    for words in ("74.0%", "64.1% to 83.9%", "200 held-out problems", "count_letters", "+22.0"):
        assert words in page
    assert shown(page)[:4] == [
        "Problems solved",
        "Win, tie and loss",
        "Change against the base",
        "V",
    ]


def test_every_curve_has_a_line_for_each_method_that_trained(experiment, page):
    config, stages = experiment
    _, curves = compared(stages)
    drawings = drawn_curves(curves, list(config.methods))
    assert [drawing.title for drawing in drawings] == shown(page)[3:]
    for drawing in drawings:
        names = [name for _, name in drawing.legend]
        assert names == ["grpo", "lsp_zero", "lsp_learn", "grpo_lsp"]


def test_a_method_without_a_curve_leaves_the_others_their_colours(experiment):
    config, stages = experiment
    _, curves = compared(stages)
    whole = drawn_curves(curves, list(config.methods))[0].legend
    curves["grpo"] = {}
    assert drawn_curves(curves, list(config.methods))[0].legend == whole[1:]


def test_games_are_of_the_last_stage_at_its_start_and_its_end(experiment):
    config, stages = experiment
    found = {sample.method: sample for sample in samples(stages, config.experiment_dir)}
    assert list(found) == ["grpo", "lsp_zero", "lsp_learn", "grpo_lsp"]
    assert found["grpo_lsp"].run == "seed-0/grpo+lsp"
    first, last = stages["grpo_lsp"][0]
    assert found["grpo_lsp"].moments == moments(last, [0, 2])
    assert found["grpo_lsp"].moments != moments(first, [0, 2])


def test_the_page_says_which_games_it_shows_of_each_kind_of_method(experiment, page):
    config, stages = experiment
    found = {one.method: one.moments for one in samples(stages, config.experiment_dir)}
    assert not any(moment.ranked for moment in found["grpo"])
    assert all(moment.ranked for moment in found["lsp_learn"])
    assert (
        "the query with the highest and the one with the lowest reward for the Challenger, or the"
        " first two where all come out of a data set and have no such reward, each with its best"
    ) in page


def test_every_stage_is_there_once_and_what_is_missing_is_said(experiment, page):
    config, stages = experiment
    places = places_of(stages, config.experiment_dir)
    assert list(places) == ["grpo", "lsp_zero", "lsp_learn", "grpo+lsp"]
    assert places["lsp_learn"][2].state == "not begun"
    assert places["lsp_learn"][1].state == "ended"
    assert "11 of 12 stages have ended" in page
    assert escaped(f"seed-2/lsp_learn failed: {HOSTILE}") in page


def test_a_stage_in_the_middle_says_how_far_it_is(tmp_path):
    run = make_run(tmp_path / "seed-0" / "x", 2)
    (run / "summary.json").unlink()
    assert places_of({"x": {0: [run]}}, tmp_path)["x"][0].state == "at iteration 2"


def test_links_are_relative_and_lead_to_pages_that_exist(experiment, page):
    config, _ = experiment
    parser = Links()
    parser.feed(page)
    assert parser.open == []
    assert parser.fetched == ["seed-0/grpo%2Blsp/report.html"]
    assert (config.experiment_dir / "seed-0" / "grpo+lsp" / "report.html").is_file()


def test_the_configuration_and_the_versions_are_there(experiment, page):
    _, stages = experiment
    assert "experiment_dir:" in page
    assert "transformers" in versions(stages)
    settings = stages["grpo"][1][0] / "config.yaml"
    settings.write_text(re.sub("# ray: .*", "# ray: 1.2.3", settings.read_text()))
    assert versions(stages)["ray"].endswith(", 1.2.3")


def test_names_of_methods_and_judges_are_escaped(tmp_path):
    run = make_run(tmp_path / "seed-0" / "x", 2)
    judge(run, 2, alpaca_rows(20))
    stages = {HOSTILE: {0: [run]}}
    figures = compare_judged(stages)
    config = ExperimentConfig.model_construct(
        experiment_dir=tmp_path, seeds=[0], methods={HOSTILE: []}, data={}
    )
    page = write_experiment_report(config, stages, figures, {}).read_text()
    assert "<script" not in page
    for words in (HOSTILE, f"judged by judge {HOSTILE}", f"against base {HOSTILE}"):
        assert escaped(words) in page
    assert "$\\nonsense$" in page


def test_a_judged_experiment_names_its_judge_and_subsets(tmp_path):
    config, stages = make_experiment(tmp_path / "experiment", 2)
    for chains in stages.values():
        for chain in chains.values():
            if chain and (chain[-1] / "summary.json").is_file():
                evaluate(chain[-1], 2, wins=30)
    figures = compare_judged(stages)
    page = write_experiment_report(config, stages, figures, {}).read_text()
    assert shown(page) == [
        "AlpacaEval win rate, ties as half",
        "AlpacaEval win rate, ties as losses",
        "Win, tie and loss",
    ]
    assert "helpful_base" in page
    assert "over its instructions" in page
    assert "By subset" in page


def test_an_experiment_without_a_measurement_shows_its_stages_and_games(experiment):
    config, stages = experiment
    _, curves = compared(stages)
    page = write_experiment_report(config, stages, None, curves).read_text()
    assert "Nothing has been measured yet" in page
    assert "Paired tests" not in page
    assert shown(page)[0] == "V"
    assert "Iteration 3" in page


def test_an_experiment_that_has_not_begun_has_a_page(tmp_path):
    config, _ = make_experiment(tmp_path / "other", 1)
    root = tmp_path / "experiment"
    root.mkdir()
    config = config.model_copy(update={"experiment_dir": root})
    stages = {name: {s: [] for s in config.seeds} for name in config.methods}
    stages["grpo"] = {s: [root / f"seed-{s}" / "grpo"] for s in config.seeds}
    page = write_experiment_report(config, stages, None, {}).read_text()
    assert "0 of 3 stages have ended" in page
    assert page.count("not begun") == 3
