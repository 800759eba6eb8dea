"""No hub, and the settings of an evaluation by a judge at an address."""

from __future__ import annotations

import json

import pytest

from evaluation.alpaca import hub
from evaluation.alpaca.config import AlpacaEvalConfig
from tests.evaluation.alpaca.contestants import ROWS


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    def fail(filename):
        raise hub.UnreachableError(f"{filename} cannot be had")

    monkeypatch.setattr(hub, "fetch", fail)


@pytest.fixture(autouse=True)
def judge_key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "instructions.json"
    path.write_text(json.dumps(ROWS), "utf-8")

    def make(url: str, **judge) -> AlpacaEvalConfig:
        chat = {"model": "judge", "base_url": url, "api_key_env": None, "retries": 1} | judge
        return AlpacaEvalConfig.model_validate({"instructions": path, "judge": chat})

    return make
