"""A member of a fleet with its process and the calls in its hands."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from ray.actor import ActorHandle

from cluster.calls import ask
from cluster.member import Event, Member, State

log = logging.getLogger(__name__)

STOP_DEADLINE_S = 5.0
BY_USE = (State.STARTING, State.STALE, State.SERVING)
"""The states of members that stay, those that serve least first."""
AT_WORK = (State.SERVING, State.DRAINING)
"""The states of members that may have calls in their hands."""


@dataclass(slots=True, eq=False)
class Seat:
    """One place in a fleet; processes follow one another in it, under one name."""

    member: Member
    handle: ActorHandle | None = None
    calls: set[asyncio.Timeout] = field(default_factory=set)
    """The deadlines of the calls in its hands."""
    about: dict[str, Any] = field(default_factory=dict)
    """What its process said of itself when it started."""
    answered: bool = False
    """Whether its process has started."""
    served: bool = False
    """Whether it has ever served."""
    version: int | None = None
    """The version of the weights it holds, where that is known."""
    joining: asyncio.Task[None] | None = None
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it leaves and has no call in its hands."""

    @property
    def stays(self) -> bool:
        """Whether it is to be a member, now or when its process is up."""
        return self.member.state not in (State.DRAINING, State.GONE)

    @property
    def use(self) -> tuple[int, int]:
        """How much the fleet would lose with it: how near it is to serving, and its calls."""
        return BY_USE.index(self.member.state), len(self.calls)

    def drain(self, deadline: float) -> None:
        """Begin to leave; the calls in hand end by `deadline`, in the loop's time."""
        self.member = self.member.after(Event.DRAIN)
        for limit in self.calls:
            when = limit.when()
            if when is not None and not limit.expired():
                limit.reschedule(min(when, deadline))
        self.note_idle()

    def note_idle(self) -> None:
        """See whether a leaver's last call is done."""
        if not self.stays and not self.calls:
            self.idle.set()

    async def ask_to_stop(self) -> None:
        """Let its process end in order, where it has started."""
        try:
            if self.answered:
                await ask(self.handle, STOP_DEADLINE_S, "stop")
        except Exception as error:  # noqa: BLE001 (it is killed all the same)
            log.warning("%s: stop: %s", self.member.name, error)

    def die(self) -> None:
        """Its process is gone, or hung and killed."""
        self.member = self.member.after(Event.DIED)
        self.about, self.answered, self.version = {}, False, None

    def describe(self) -> dict[str, Any]:
        """Its name, state, load and version, beside what its process said."""
        return self.about | {
            "name": self.member.name,
            "state": self.member.state.value,
            "restarts": self.member.incarnation,
            "in_flight": len(self.calls),
            "version": self.version,
        }
