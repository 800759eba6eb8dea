"""AlpacaEval's published files, where the machine has them: ../shared/data beside the project."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests import conftest

DATA = conftest.DATA / "alpaca_eval"
INSTRUCTIONS = DATA / "instructions.json"
DIFFICULTY = DATA / "leaderboards" / "instruction_difficulty_recovered.json"
SOFT = DATA / "annotations" / "weighted_alpaca_eval_gpt4_turbo__alpaca-7b.json"
HARD = DATA / "annotations" / "alpaca_eval_gpt4__alpaca-7b.json"

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="AlpacaEval's published files are not in ../shared/data/alpaca_eval"
)


def annotations() -> list[Path]:
    return sorted((DATA / "annotations").glob("*.json"))


def leaderboard_row(annotation: Path) -> dict[str, str]:
    judge, _, model = annotation.stem.partition("__")
    board = f"alpaca_eval_{2 if judge.startswith('weighted') else 1}_leaderboard.csv"
    with (DATA / "leaderboards" / board).open(encoding="utf-8") as file:
        return next(row for row in csv.DictReader(file) if row[""] == model)
