"""Engines shared by the tests of the actors: each is started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from actors.policy import PolicyEngine
from tests.actors.helpers import start_policy_engine


@pytest.fixture(scope="session")
def engine(tiny_model: Callable[[bool], Path]) -> Iterator[PolicyEngine]:
    """An engine whose weights stay those on disk."""
    engine = start_policy_engine(tiny_model(True))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def model(tiny_model: Callable[[bool], Path]) -> LlamaForCausalLM:
    """The model that `engine` serves, at float32."""
    return LlamaForCausalLM.from_pretrained(tiny_model(True))


@pytest.fixture(scope="session", params=[True, False], ids=["tied", "untied"])
def updated(
    request: pytest.FixtureRequest, tiny_model: Callable[[bool], Path]
) -> Iterator[tuple[PolicyEngine, LlamaForCausalLM]]:
    """An engine to be updated, and the model that trains for it."""
    folder = tiny_model(request.param)
    engine = start_policy_engine(folder)
    engine.init_transfer({}).result()
    yield engine, LlamaForCausalLM.from_pretrained(folder)
    engine.close()
