"""What several tests of whole runs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from playground.base_model import build
from playground.training import Recipe


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playground model that has learnt little more than to end its sentences."""
    folder = tmp_path_factory.mktemp("base")
    return build(0, folder, Recipe(tokens=150_000, batch_tokens=512, threads=1))
