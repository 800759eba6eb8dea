"""Pending groups survive a checkpoint exactly."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from actors.records import Completion, Group, Query, Rejected, Scores, Verdict
from cluster.game import Pending
from cluster.pending import PENDING_FILE, load_pending, save_pending
from configs.errors import UserError


def _completion(text: str, logprobs: bool) -> Completion:
    return Completion(
        prompt_token_ids=np.array([1, 2, 3], dtype=np.int32),
        token_ids=np.array([7, 8], dtype=np.int32),
        text=text,
        finish_reason="stop",
        version_min=3,
        version_max=4,
        seed=2**62 + 1,
        logprobs=np.array([-0.1, -2.3], dtype=np.float32) if logprobs else None,
    )


def _pending() -> Pending:
    query = Query("5-1-0", "Sort b a.", "letters", "Sort __.", _completion("Sort b a.", True))
    answers = (_completion("a b", True), _completion("b a ü", False))
    scores = Scores({"solved": np.array([1.0, 0.0])}, (Verdict(7, "fine"), Verdict(None, "?")))
    data_query = Query("5-2-0", "2 + 2?", reference="4")
    return Pending(
        [Group(query, answers, scores), Group(data_query, answers, scores)],
        [Rejected(query, "duplicate")],
    )


def _flat(value: object) -> str:
    return repr(value)


def test_pending_groups_come_back_as_they_were(tmp_path: Path):
    pending = _pending()
    save_pending(pending, tmp_path)
    back = load_pending(tmp_path)
    assert _flat(asdict(back)) == _flat(asdict(pending))
    completion = back.groups[0].answers[0]
    assert completion.token_ids.dtype == np.int32
    assert completion.logprobs is not None
    assert completion.logprobs.dtype == np.float32
    assert completion.seed == 2**62 + 1


def test_a_truncated_file_is_refused_by_name(tmp_path: Path):
    save_pending(_pending(), tmp_path)
    path = tmp_path / PENDING_FILE
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"pending\.json cannot be read"):
        load_pending(tmp_path)
