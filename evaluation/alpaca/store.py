"""Replies, of a judge or of an evaluated model: one line each in a file, by what they answer.

Invariant: a reply is on the disk before anybody hears of it, and a request that has one is never
sent again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from configs.errors import UserError, naming


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint answered to one request.

    `top_logprobs` are (token, log-probability) at the first place, empty where not asked for;
    token counts are None where the endpoint does not say. `refusal` is what it said instead of an
    answer, None where it answered.
    """

    text: str
    finish_reason: str | None = None
    top_logprobs: tuple[tuple[str, float], ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    refusal: str | None = None


def request_key(body: Mapping[str, Any]) -> str:
    """The name of a request: a hash of everything that it says, and not of where it is sent."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyStore:
    """An append-only file of replies, held by one process at a time."""

    def __init__(self, path: Path, otherwise: str = "name another file as judge.cache") -> None:
        """Name the file; it is opened, and made where there is none, on entering.

        `otherwise` is what its user can do where it cannot be used, for messages.
        """
        self._path = path
        self._otherwise = otherwise
        self._replies: dict[str, Reply] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Lock the file and read it.

        A last line without its end, left by a crash, is cut off: its request is asked again.

        Raises:
            UserError: Another process has it, or it is no file of replies.
        """
        with naming(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+b")
        try:
            self._lock(file)
            file.seek(0)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._replies = dict(map(self._parse, whole.splitlines()))
            file.truncate(len(whole))
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file, which gives up the lock."""
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """The reply to a request, None where it has not been answered yet."""
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Write a reply through to the disk."""
        assert self._file is not None, "a store is entered before it is written to"
        line = json.dumps({"key": key, **asdict(reply)}, ensure_ascii=True) + "\n"
        with naming(self._path):
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        self._replies[key] = reply

    def _lock(self, file: IO[bytes]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self._path}: another evaluation is writing to it; wait for it, or"
                f" {self._otherwise}"
            ) from None

    def _parse(self, line: bytes) -> tuple[str, Reply]:
        try:
            fields = json.loads(line)
            key = fields.pop("key")
            fields["top_logprobs"] = tuple((t, float(p)) for t, p in fields["top_logprobs"])
            return key, Reply(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{self._path}: holds a line that is no reply; {self._otherwise}, or remove that"
                " line"
            ) from None
