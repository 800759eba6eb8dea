"""Experiments: what stages methods share, and what is refused before anything is played."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.errors import UserError
from configs.experiments import chains, distinct_stages, load_experiment
from configs.load import load
from tests.conftest import ROOT

EXPERIMENTS = ROOT / "configs" / "experiments"
ONE = {"name": "one", "config": "configs/quickstart.yaml"}
TWO = {"name": "two", "config": "configs/quickstart.yaml", "set": ["queries=16"]}


def written(folder: Path, methods: object, **others: object) -> Path:
    content = {"experiment_dir": str(folder / "runs"), "seeds": [0], "methods": methods, **others}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def folders(methods: object, tmp_path: Path) -> dict[str, list[str]]:
    made = chains(load_experiment(written(tmp_path, methods)))
    return {method: [stage.folder for stage in chain] for method, chain in made.items()}


def refusal(tmp_path: Path, methods: object, **others: object) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(written(tmp_path, methods, **others))
    return str(caught.value)


def test_stages_that_play_the_same_from_the_same_start_are_one(tmp_path):
    renamed = {**ONE, "name": "other_name"}
    three = {**ONE, "name": "three", "set": ["answers=4"]}
    methods = {"base": [], "a": [ONE], "b": [renamed, TWO], "c": [TWO, ONE], "d": [three, ONE]}
    assert folders(methods, tmp_path) == {
        "base": [],
        "a": ["one"],
        "b": ["one", "one+two"],
        # The same settings from another starting point are another stage.
        "c": ["two", "two+one"],
        "d": ["three", "three+one"],
    }


def test_another_override_makes_another_stage(tmp_path):
    other = {**ONE, "name": "other", "set": ["answers=4"]}
    assert folders({"a": [ONE], "b": [other]}, tmp_path) == {"a": ["one"], "b": ["other"]}


def test_a_stage_comes_after_the_one_it_starts_from(tmp_path):
    made = chains(load_experiment(written(tmp_path, {"c": [TWO, ONE], "a": [ONE]})))
    assert [stage.folder for stage in distinct_stages(made)] == ["two", "two+one", "one"]


@pytest.mark.parametrize(
    ("methods", "others", "words"),
    [
        ({"a": [ONE]}, {"sead": [1]}, "unknown key sead; "),
        (
            {"a": [{**ONE, "sets": []}]},
            {},
            "unknown key methods.a.0.sets; did you mean methods.a.0.set?",
        ),
        ({"a": [ONE, ONE]}, {}, "methods.a has two stages named one"),
        ({"a": [ONE], "b": [{**TWO, "name": "one"}]}, {}, "stage one that is not the same in both"),
        ({"a": [{**ONE, "set": ["seed=3"]}]}, {}, "the experiment sets seed of stage one itself"),
        ({"a": [TWO, {**ONE, "set": ["model.path=x"]}]}, {}, "sets model.path of stage one"),
        ({"base": []}, {}, "methods holds no stage"),
        ({"a": [ONE]}, {"seeds": [1, 1]}, "names a seed twice"),
        ({"a": [ONE]}, {"seeds": []}, "seeds"),
        ({"a": [{**ONE, "name": "../x"}]}, {}, "methods.a.0.name"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, methods, others, words):
    assert words in refusal(tmp_path, methods, **others)


def test_a_first_stage_may_name_its_model(tmp_path):
    load_experiment(written(tmp_path, {"a": [{**ONE, "set": ["model.path=x"]}]}))


def test_seeds_of_the_command_line_stand_in_for_the_files(tmp_path):
    assert load_experiment(written(tmp_path, {"a": [ONE]}), [4, 2]).seeds == [4, 2]


def test_the_playgrounds_methods_and_what_they_share():
    config = load_experiment(EXPERIMENTS / "playground.yaml")
    made = chains(config)
    assert config.seeds == [0, 1, 2, 3, 4]
    assert list(made) == ["base", "grpo", "lsp_zero", "lsp", "lsp_learn", "grpo_lsp", "lsp_grpo"]
    assert made["base"] == ()
    assert made["grpo_lsp"][0] is made["grpo"][0]
    assert made["lsp_grpo"][0] is made["lsp"][0]
    assert len(distinct_stages(made)) == 6


def test_the_kl_experiment_takes_a_run_of_the_other():
    learn = chains(load_experiment(EXPERIMENTS / "playground.yaml"))["lsp_learn"]
    kl = load_experiment(EXPERIMENTS / "playground-kl.yaml")
    assert chains(kl)["k2_loss"] == learn
    assert kl.experiment_dir == load_experiment(EXPERIMENTS / "playground.yaml").experiment_dir


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_self_play_in_the_papers_experiments_is_one_game_to_the_letter(version, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = chains(load_experiment(EXPERIMENTS / f"paper-{version}.yaml"))
    zero, lsp = (
        load(made[name][0].config, made[name][0].overrides) for name in ("lsp_zero", "lsp")
    )
    assert lsp.learner.kl.estimator == "k1"
    assert lsp.learner.kl.level == "sequence"
    assert zero.learner == lsp.learner
    assert zero.rewards.parts == lsp.rewards.parts
    for run in (zero, lsp):
        assert not run.rewards.standardise
        assert run.challenger is not None
        assert run.challenger.rejected == "worst"
