"""Who is least loaded: the members that get work, each with the calls in its hands.

Every move takes the same time however many members there are. Among equals the one that has been
at its load for longest is next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class LeastLoaded(Generic[T]):
    """Items by load. Invariant: no item that is in has a load below `_lowest`."""

    def __init__(self) -> None:
        self._load: dict[T, int] = {}
        self._at_load: defaultdict[int, dict[T, None]] = defaultdict(dict)
        self._lowest = 0

    def __len__(self) -> int:
        return len(self._load)

    def add(self, item: T, load: int) -> None:
        """Let an item be taken that has so much in its hands already."""
        self._load[item] = load
        self._at_load[load][item] = None
        self._lowest = min(self._lowest, load)

    def remove(self, item: T) -> None:
        """Let it be taken no more; nothing where it is not in."""
        load = self._load.pop(item, None)
        if load is not None:
            del self._at_load[load][item]

    def take(self) -> T | None:
        """The least loaded, which has one more from now on; None where there is none."""
        if not self._load:
            return None
        while not self._at_load[self._lowest]:
            self._lowest += 1
        item = next(iter(self._at_load[self._lowest]))
        self._move(item, 1)
        return item

    def give_back(self, item: T) -> None:
        """One less in its hands; nothing where it is not in."""
        if item in self._load:
            self._move(item, -1)

    def _move(self, item: T, by: int) -> None:
        load = self._load[item]
        self.remove(item)
        self.add(item, load + by)
