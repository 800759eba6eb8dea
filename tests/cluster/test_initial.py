"""A run keeps the model that it began with, whatever a path, a branch or a maker says later."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster import initial
from cluster.initial import KEPT, find_model, initial_model, model_identity, pinned
from configs.errors import UserError
from configs.load import load
from configs.schema import RunConfig
from tests.models import save_causal_model

PRESET = Path("configs/quickstart.yaml").absolute()


def config(run_dir: Path, *overrides: str) -> RunConfig:
    run_dir.mkdir(exist_ok=True)
    return load(PRESET, [f"run_dir={run_dir}", *overrides])


def of_path(run_dir: Path, path: object) -> RunConfig:
    return config(run_dir, "model.make=null", f"model.path={path}")


def maker(seed: int, folder: Path) -> Path:
    """As a `model.make` does: made once, then found again."""
    made = folder / f"made-{seed}"
    return made if made.is_dir() else save_causal_model(made, tied=False, seed=seed)


def test_models_of_one_shape_are_told_apart_by_their_weights(tmp_path: Path):
    one, other = (save_causal_model(tmp_path / str(seed), tied=False, seed=seed) for seed in (0, 1))
    assert model_identity(str(one), None) != model_identity(str(other), None)
    assert model_identity(str(one), None) == model_identity(str(one), None)


def test_models_are_told_apart(tiny_model):
    tied, untied = (model_identity(str(tiny_model(kind)), None) for kind in (True, False))
    assert tied != untied
    assert tied == model_identity(str(tiny_model(True)), "any")
    assert model_identity("org/name", "v1") != model_identity("org/name", None)


def test_a_run_goes_on_from_the_model_it_began_with(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_causal_model(tmp_path / "model", tied=False, seed=0)
    began = initial_model(of_path(tmp_path / "run", "model"))
    assert began.path == str(tmp_path / "model")  # absolute: ranks have directories of their own
    assert initial_model(of_path(tmp_path / "run", "model")) == began
    shutil.rmtree(tmp_path / "model")
    save_causal_model(tmp_path / "model", tied=False, seed=1)
    with pytest.raises(UserError, match="began with another model than"):
        initial_model(of_path(tmp_path / "run", "model"))


def test_a_made_model_that_is_gone_is_made_again_and_must_be_the_same(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(initial, "MODELS", "one")
    made = config(tmp_path / "run", "model.make=tests.cluster.test_initial:maker")
    began = initial_model(made)
    shutil.rmtree(began.path)
    assert initial_model(made) == began
    monkeypatch.setattr(initial, "MODELS", "other")
    shutil.rmtree(began.path)
    assert initial_model(made).path != began.path
    other = config(tmp_path / "run", "model.make=tests.cluster.test_initial:maker", "seed=1")
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(UserError, match="began with another model"):
        initial_model(other)


def test_a_hub_ids_branch_is_pinned_to_its_commit(tmp_path: Path, tiny_model, monkeypatch):
    """The hub's cache as `hf download` leaves it, a branch that moves later."""
    repository = tmp_path / "hub" / "models--org--name"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_model(True), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = of_path(tmp_path / "run", "org/name")
    began = initial_model(asked)
    assert began.revision == "a" * 40
    (repository / "refs" / "main").write_text("b" * 40)
    assert find_model(asked).revision == "b" * 40
    assert initial_model(asked) == began
    assert pinned(asked, began).model.revision == "a" * 40


def test_an_unreadable_record_is_not_guessed(tmp_path: Path, tiny_model):
    asked = of_path(tmp_path / "run", tiny_model(True))
    initial_model(asked)
    (tmp_path / "run" / KEPT).write_text("{")
    with pytest.raises(UserError, match=r"model\.json is unreadable"):
        initial_model(asked)
