"""Configurations: what is read, what is refused and in which words, what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.advice import warnings
from configs.errors import UserError
from configs.load import (
    RAY_JOB_VARIABLE,
    differences,
    load,
    load_resolved,
    require_shared_run_dir,
    save_resolved,
)
from tests.conftest import ROOT

PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
QUICKSTART = next(path for path in PRESETS if path.name == "quickstart.yaml")
LSP = QUICKSTART.with_name("llama-3.2-3b-lsp.yaml")
MIX = ["source.kind=mix", "source.dataset={path: rows.jsonl}"]


def refusal(*overrides: str, path: Path = QUICKSTART) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_the_presets_of_the_documentation_exist():
    assert sorted(path.stem for path in PRESETS) == [
        "llama-3.2-3b-grpo",
        "llama-3.2-3b-lsp",
        "llama-3.2-3b-lsp-paper",
        "llama-3.2-3b-lsp-zero",
        "one-gpu",
        "quickstart",
    ]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_resolved_configuration_loads_back_equal(path, tmp_path):
    config = load(path, ["seed=7"])
    written = save_resolved(config, tmp_path / "run")
    assert load_resolved(tmp_path / "run") == config
    text = written.read_text()
    assert "# git_commit: " in text
    assert "# torch: " in text
    assert yaml.safe_load(text)["seed"] == 7


def test_overrides_reach_nested_keys_lists_and_absent_sections():
    overrides = ["rollout.replicas=6", "rewards.parts.0.weight=2", "faults.bad_steps=5"]
    config = load(QUICKSTART, [*overrides, "learner.learning_rate=1e-5", "challenger.prompt=null"])
    assert config.rollout.replicas == 6
    assert config.rewards.parts[0].weight == 2.0
    assert config.faults.bad_steps == 5
    assert config.learner.learning_rate == 1e-5
    assert config.challenger.prompt is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rollout.replica=6", ["unknown key rollout.replica;", "did you mean rollout.replicas?"]),
        ("rolout.replicas=6", ["unknown key rolout", "did you mean rollout?"]),
        ("xyz=3", ["unknown key xyz", "the top level has the keys algorithm, run_dir"]),
        ("rewards.parts.0.fucntion=a:b", ["did you mean rewards.parts.0.function?"]),
        (
            "rewards.parts.0.fleet.tensor_parallel=1",
            ["unknown key rewards.parts.0.fleet.tensor_parallel", "has the keys replicas, cpus"],
        ),
        ("rewards.parts.0.kind=mood", ["rewards.parts.0.kind", "'preference', 'verifier'"]),
        ("rollout.replicas=many", ["rollout.replicas must be a valid integer", "not 'many'"]),
        ("rollout.replicas=yes", ["replicas must be a number, not true"]),
        ("rollout.replicas=0", ["rollout.replicas must be greater than or equal to 1"]),
        ("solver.sampling.temperature=0", ["solver.sampling.temperature is 0", "above 0"]),
        ("challenger.sampling.temperature=0", ["challenger.sampling.temperature is 0"]),
        ("learner.zero_stage=5", ["learner.zero_stage must be 0, 1, 2 or 3, not 5"]),
        ("challenger.alpha=-1", ["challenger.alpha must be greater than or equal to 0"]),
        ("queries=1", ["queries must be greater than or equal to 2", "baseline is the mean"]),
        ("answers=1", ["answers must be greater than or equal to 2", "baseline is the mean"]),
        ("rewards.parts.0.function=verify", ["rewards.parts.0.function", "module:function"]),
        ("model=small", ["model must be a section with keys of its own"]),
        ("learner.betas=[0.9]", ["learner.betas.1 is missing"]),
        ("learner.betas=[0.9,1]", ["learner.betas.1 must be less than 1"]),
        ("learner.betas=[-0.1,0.9]", ["learner.betas.0 must be greater than or equal to 0"]),
        ("rewards.parts.0.weight=.inf", ["rewards.parts.0.weight must be a finite number"]),
        ("learner.gradient_clip=.nan", ["learner.gradient_clip must be a finite number"]),
        ("rewards.quality=null", ["algorithm lsp needs rewards.quality"]),
        ("staleness=1 colocate=true", ["staleness must be 0"]),
        ("learner.offload=true", ["learner.zero_stage"]),
        ("rewards.parts.3.weight=1", ["items 0 to 0 there, not '3'"]),
        ("rewards.parts.x=1", ["items 0 to 0 there, not 'x'"]),
        ("seed.deeper=1", ["seed is 0", "no keys of its own"]),
        ("seed", ["write a.b=c"]),
        ("seed=[1", ["not valid YAML"]),
    ],
)
def test_a_mistake_is_named_with_its_key_and_what_is_allowed(override, expected):
    message = refusal(*override.split(" ")).replace("deeper.", "deeper")
    for words in expected:
        assert words in message
    assert "override " in message or str(QUICKSTART) in message


def test_a_role_that_is_not_trained_may_be_greedy():
    load(QUICKSTART, ["challenger.sampling.temperature=0", "challenger.alpha=0"])


def test_every_problem_has_a_line_of_its_own():
    assert len(refusal("answers=1", "xyz=3").splitlines()) == 2


def test_a_mistake_in_the_file_names_the_file_and_not_an_override(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(QUICKSTART.read_text().replace("answers: 8", "answers: 1"))
    message = refusal("seed=3", path=path)
    assert message.startswith(f"{path}: answers must be")
    assert "override" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("algorithm: lsp\nseed: [1, 2\nrun_dir: x\n", "line 3: not valid YAML"),
        ("seed: 1\nseed: 2\n", "line 2: not valid YAML: the key 'seed' is written twice"),
        ("rollout:\n  cpus: 1\n  cpus: 2\n", "line 3: not valid YAML: the key 'cpus'"),
        ("- a\n- b\n", "a configuration is a mapping of keys, this is a list"),
        ("", "this is empty"),
        ("run_dir: x\n", "algorithm is missing"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path, text, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = refusal(path=path)
    assert expected in message
    assert str(path) in message


def test_a_missing_file_is_named_with_the_presets(tmp_path):
    message = refusal(path=tmp_path / "absent.yaml")
    assert "absent.yaml: there is no such file" in message
    assert "quickstart.yaml" in message


def test_a_submitted_job_needs_an_absolute_run_dir(monkeypatch):
    relative, absolute = Path("runs/quickstart"), Path("/shared/run")
    require_shared_run_dir(relative)
    monkeypatch.setenv(RAY_JOB_VARIABLE, "{}")
    require_shared_run_dir(absolute)
    with pytest.raises(UserError, match=r"run_dir runs/quickstart is relative.*absolute path"):
        require_shared_run_dir(relative)


def test_ray_still_names_a_submitted_driver_by_that_variable():
    from ray._private.runtime_env import constants

    assert constants.RAY_JOB_CONFIG_JSON_ENV_VAR == RAY_JOB_VARIABLE


def test_a_directory_without_a_run_and_one_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        load_resolved(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write config.yaml"):
        save_resolved(load(QUICKSTART), tmp_path / "file")


def test_differences_name_the_key_and_both_values_and_ignore_the_place():
    old = load(QUICKSTART)
    assert differences(old, load(QUICKSTART, ["run_dir=elsewhere"])) == []
    changed = load(QUICKSTART, ["learner.kl.coefficient=0.1", "gate.task_verifier=null"])
    assert differences(old, changed) == [
        "gate.task_verifier: 'playground.language:readable' → None",
        "learner.kl.coefficient: 0.05 → 0.1",
    ]


def test_the_papers_printed_kl_is_warned_of_and_the_other_presets_are_silent():
    found = {path.stem: warnings(load(path)) for path in PRESETS}
    assert "expected gradient of zero" in found.pop("llama-3.2-3b-lsp-paper")[0]
    assert set(map(len, found.values())) == {0}


@pytest.mark.parametrize(
    ("path", "override", "words"),
    [
        (LSP, "solver.sampling.top_p=0.9", "solver.sampling.top_p"),
        (LSP, "learner.kl.coefficient=0", "nothing holds the policy"),
        (LSP, "learner.dtype=float32", "rollout.dtype is bfloat16"),
        (QUICKSTART, "challenger={reward: quality}", "challenger.reward is quality"),
        (LSP, "learner.kl.place=reward", "k2 subtracted from the reward"),
        (LSP, "learner.kl={place: reward, estimator: k3}", "k3 subtracted from the reward"),
    ],
)
def test_what_is_rarely_meant_is_warned_of(path, override, words):
    assert any(words in sentence for sentence in warnings(load(path, [override])))


@pytest.mark.parametrize("override", ["estimator: k1", "coefficient: 0"])
def test_kl_in_the_reward_is_not_warned_of_where_it_is_right_or_off(override):
    found = warnings(load(LSP, [f"learner.kl={{place: reward, {override}}}"]))
    assert not any("from the reward" in sentence for sentence in found)


@pytest.mark.parametrize(
    ("queries", "more", "mean"),
    [
        (11, [], "1.8"),
        (12, [], None),
        (11, ["challenger.baseline=batch"], None),
        (11, ["challenger.alpha=0"], None),
        (16, [*MIX, "source.dataset_share=0.5"], "1.3"),
        (60, [*MIX, "source.dataset_share=0.8"], None),
    ],
)
def test_a_baseline_per_task_is_warned_of_where_queries_would_be_alone(queries, more, mean):
    # The quickstart's templates are of six tasks, the model's own judgement one of them.
    settings = [f"queries={queries}", "challenger.baseline=task", *more]
    found = [one for one in warnings(load(QUICKSTART, settings)) if "challenger.baseline" in one]
    assert len(found) == (mean is not None)
    assert all(f"over 6 tasks are {mean} of each" in one for one in found)


def test_the_presets_hold_the_papers_numbers():
    rates = {"lsp": 3e-6, "lsp-paper": 3e-6, "lsp-zero": 3e-6, "grpo": 1e-6}
    for name, rate in rates.items():
        config = load(QUICKSTART.with_name(f"llama-3.2-3b-{name}.yaml"))
        assert (config.learner.learning_rate, config.learner.kl.coefficient) == (rate, 0.05)
        assert (config.queries, config.staleness) == (8, 0)
    paper = load(QUICKSTART.with_name("llama-3.2-3b-lsp-paper.yaml"))
    kl, quality = paper.learner.kl, paper.rewards.quality
    assert (kl.estimator, kl.level, kl.place) == ("k1", "sequence", "loss")
    assert not paper.rewards.standardise
    assert (quality and quality.weight, paper.rewards.parts[0].weight) == (1.0, 1.0)


@pytest.mark.parametrize("key", ["learner.ranks", "rollout.replicas", "rollout.tensor_parallel"])
def test_one_rank_and_one_engine_share_a_gpu_and_more_are_refused(key):
    one_gpu = QUICKSTART.with_name("one-gpu.yaml")
    sentence = f"one engine on one GPU, and {key} is 2: set {key} to 1, or colocate to false"
    assert sentence in refusal(f"{key}=2", path=one_gpu)
    load(one_gpu, [f"{key}=2", "colocate=false"])


def test_an_engine_beside_the_learner_does_not_choose_how_many_it_is():
    one_gpu = QUICKSTART.with_name("one-gpu.yaml")
    autoscale = ["rollout.autoscale.max=2", "rollout.autoscale.target=0.1"]
    assert "rollout.autoscale would add others" in refusal(*autoscale, path=one_gpu)


def test_a_section_given_in_part_keeps_this_places_defaults():
    config = load(
        QUICKSTART, ["rewards.quality.sampling={max_tokens: 9}", "challenger.sampling={}"]
    )
    assert config.rewards.quality is not None
    judge, challenger = config.rewards.quality.sampling, config.challenger.sampling
    assert (judge.temperature, judge.max_tokens) == (0.0, 9)
    assert (challenger.temperature, challenger.max_tokens) == (1.0, 256)
