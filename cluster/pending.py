"""Groups that were generated and not trained, as a checkpoint keeps them: plain JSON.

No pickles, so that a checkpoint from elsewhere is data and never code.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from actors.records import Completion, Group, Query, Rejected, Scores, Verdict
from cluster.game import Pending
from configs.errors import UserError

PENDING_FILE = "pending.json"


def save_pending(pending: Pending, folder: Path) -> None:
    """Write the pending groups into a checkpoint's folder."""
    text = json.dumps(asdict(pending), default=_plain)
    (folder / PENDING_FILE).write_text(text, "utf-8")


def load_pending(folder: Path) -> Pending:
    """Read what `save_pending` wrote; UserError where it is not whole."""
    try:
        stored = json.loads((folder / PENDING_FILE).read_text("utf-8"))
        return Pending(
            [_group(group) for group in stored["groups"]],
            [Rejected(_query(one["query"]), one["reason"]) for one in stored["rejected"]],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"checkpoint {folder}: {PENDING_FILE} cannot be read ({error}): write the number of"
            " an older one into checkpoints/latest"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} in a pending group")


def _group(stored: dict[str, Any]) -> Group:
    return Group(
        _query(stored["query"]),
        tuple(_completion(answer) for answer in stored["answers"]),
        _scores(stored["scores"]),
        stored["reject_reason"],
    )


def _query(stored: dict[str, Any]) -> Query:
    fields: dict[str, Any] = dict(stored)
    if stored["completion"] is not None:
        fields["completion"] = _completion(stored["completion"])
    return Query(**fields)


def _completion(stored: dict[str, Any]) -> Completion:
    logprobs = stored["logprobs"]
    arrays: dict[str, Any] = {
        "prompt_token_ids": np.asarray(stored["prompt_token_ids"], dtype=np.int32),
        "token_ids": np.asarray(stored["token_ids"], dtype=np.int32),
        "logprobs": None if logprobs is None else np.asarray(logprobs, dtype=np.float32),
    }
    return Completion(**stored | arrays)


def _scores(stored: dict[str, Any]) -> Scores:
    parts = {name: np.asarray(values) for name, values in stored["parts"].items()}
    return Scores(parts, tuple(Verdict(**verdict) for verdict in stored["verdicts"]))
