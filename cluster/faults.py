"""What ends a run that could still be saved, and how many bad things in a row are too many."""

from __future__ import annotations

from dataclasses import dataclass


class RunError(RuntimeError):
    """The run cannot go on, and why, in one sentence; what it trained so far is worth saving."""


@dataclass(slots=True)
class Streak:
    """Counts bad things in a row and remembers the first; `what` and `key` are for the message."""

    what: str
    key: str
    limit: int
    count: int = 0
    began: str = ""

    def good(self) -> None:
        """The row is broken."""
        self.count = 0

    def bad(self, where: str) -> None:
        """One more; RunError at the limit, which says where the row began."""
        if self.count == 0:
            self.began = where
        self.count += 1
        if self.count >= self.limit:
            raise RunError(
                f"{self.count} {self.what} in a row ({self.key} {self.limit}); it began with"
                f" {self.began}; the last is {where}"
            )
