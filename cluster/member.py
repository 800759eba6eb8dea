"""The life of one actor of a fleet: a pure state machine, no Ray in it.

    STARTING ──ready──► STALE ──current──► SERVING ──drain──► DRAINING ──drained──► GONE
        ▲                                                                            ▲
        └──restart── DEAD ◄──died── (STARTING, STALE, SERVING)      DEAD ──give_up───┘

Only a SERVING member gets work. A newcomer, and a restarted one, is STALE until it holds the
current weights; a fleet without weights passes through STALE at once. A member that is leaving
is not restarted when it dies: it is GONE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class State(Enum):
    """Where a member stands."""

    STARTING = "starting"
    STALE = "stale"
    SERVING = "serving"
    DRAINING = "draining"
    DEAD = "dead"
    GONE = "gone"


class Event(Enum):
    """What can happen to a member."""

    READY = "ready"  # its process answers
    CURRENT = "current"  # it holds the current weights
    DRAIN = "drain"  # it is to leave: no new work
    DRAINED = "drained"  # its last work is done
    DIED = "died"  # its process is gone, or hung and killed
    RESTART = "restart"  # a new process takes its place
    GIVE_UP = "give_up"  # nothing takes its place


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STARTING, Event.READY): State.STALE,
    (State.STARTING, Event.DIED): State.DEAD,
    (State.STARTING, Event.DRAIN): State.DRAINING,
    (State.STALE, Event.CURRENT): State.SERVING,
    (State.STALE, Event.DIED): State.DEAD,
    (State.STALE, Event.DRAIN): State.DRAINING,
    (State.SERVING, Event.DIED): State.DEAD,
    (State.SERVING, Event.DRAIN): State.DRAINING,
    (State.DRAINING, Event.DRAINED): State.GONE,
    (State.DRAINING, Event.DIED): State.GONE,
    (State.DEAD, Event.RESTART): State.STARTING,
    (State.DEAD, Event.GIVE_UP): State.GONE,
}


class TransitionError(RuntimeError):
    """An event that cannot happen in this state: the shell around the machine is wrong."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a fleet; `incarnation` counts its processes, 0 the first."""

    name: str
    state: State = State.STARTING
    incarnation: int = 0

    def after(self, event: Event) -> Member:
        """This member after `event`; TransitionError where the table has no such step."""
        try:
            state = TRANSITIONS[self.state, event]
        except KeyError:
            raise TransitionError(
                f"{self.name} is {self.state.value}: {event.value} cannot happen to it"
            ) from None
        return replace(self, state=state, incarnation=self.incarnation + (event is Event.RESTART))
