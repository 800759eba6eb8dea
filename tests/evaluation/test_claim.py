"""A folder holds one evaluation."""

from __future__ import annotations

import pytest

from configs.errors import UserError
from evaluation.claim import RESULT, claim

MINE = {"evaluation": "math", "model": {"weights": "a"}, "limit": None}


def test_the_result_of_another_evaluation_is_not_written_over(tmp_path):
    claim(tmp_path, MINE)
    (tmp_path / RESULT).write_text("{}")
    claim(tmp_path, MINE)
    for key, value in {"limit": 20, "model": {"weights": "b"}, "evaluation": "coding"}.items():
        with pytest.raises(UserError, match=f"with another value of {key}: name another"):
            claim(tmp_path, MINE | {key: value})


def test_a_folder_without_a_result_is_free(tmp_path):
    claim(tmp_path, MINE | {"limit": 20})
    claim(tmp_path, MINE)


def test_a_result_that_nobody_has_claimed_is_another(tmp_path):
    (tmp_path / RESULT).write_text("{}")
    with pytest.raises(UserError, match="another value of evaluation, model: name another"):
        claim(tmp_path, MINE)
