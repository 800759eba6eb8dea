"""How far generation may run ahead of training: admission control by counting groups.

Invariant: submitted = accepted + dropped + running. With N groups in a batch, `version` batches
trained and staleness k, there is room for (k + version + 1)·N − accepted − running more groups,
so that a group begun now is trained at most k versions later. k = 0 leaves room for exactly the
batch that is trained next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.records import Group


@dataclass(slots=True)
class Staleness:
    """The counters of the rule. `accepted` counts groups trained or waiting to be."""

    staleness: int
    batch: int
    version: int = 0
    accepted: int = 0
    dropped: int = 0
    running: int = 0

    @property
    def submitted(self) -> int:
        """All groups ever begun (those of a restored run count as accepted)."""
        return self.accepted + self.dropped + self.running

    @property
    def capacity(self) -> int:
        """How many groups may be begun now; negative where a restored run held more."""
        allowed = (self.staleness + self.version + 1) * self.batch
        return allowed - self.accepted - self.running

    def submit(self, groups: int) -> None:
        """Groups are begun."""
        if groups > self.capacity:
            raise RuntimeError(f"{groups} groups begun where the capacity is {self.capacity}")
        self.running += groups

    def accept(self) -> None:
        """A running group is whole."""
        self._end_one()
        self.accepted += 1

    def replace(self) -> None:
        """A running group is dropped and another is begun in its place."""
        self._end_one()
        self.dropped += 1
        self.submit(1)

    def retract(self, groups: int) -> None:
        """Groups accepted and not trained are dropped after all, others begun in their place."""
        self.accepted -= groups
        self.dropped += groups
        self.submit(groups)

    def train(self) -> None:
        """A batch was trained and its version published."""
        self.version += 1

    def _end_one(self) -> None:
        if self.running < 1:
            raise RuntimeError("a group ended that was never begun")
        self.running -= 1


def check_age(groups: Sequence[Group], version: int, staleness: int) -> None:
    """Refuse to train what was written by a policy older than the rule admits.

    The counting above promises it; here it is seen in the tokens' own versions. RuntimeError
    names the group: a training step on it would be silently off-policy.
    """
    for group in groups:
        if version - group.version_min > staleness:
            raise RuntimeError(
                f"group {group.query.group_id} was begun by policy version {group.version_min} and"
                f" would be trained at version {version}, where staleness is {staleness}"
            )
