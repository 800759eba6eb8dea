"""The life of a fleet member, exhaustively: every state with every event."""

from __future__ import annotations

import itertools

import pytest

from cluster.member import TRANSITIONS, Event, Member, State, TransitionError


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_event_in_every_state_follows_the_table_or_is_refused(state, event):
    member = Member("rollout-0", state, incarnation=2)
    if (state, event) in TRANSITIONS:
        after = member.after(event)
        assert after.state is TRANSITIONS[state, event]
        assert after.incarnation == (3 if event is Event.RESTART else 2)
    else:
        with pytest.raises(TransitionError, match=f"rollout-0 is {state.value}"):
            member.after(event)


def test_serving_is_entered_only_from_stale_and_by_holding_the_current_weights():
    entries = {key for key, state in TRANSITIONS.items() if state is State.SERVING}
    assert entries == {(State.STALE, Event.CURRENT)}


def test_a_restarted_member_is_stale_before_it_serves():
    member = Member("rollout-0")
    path = [Event.READY, Event.CURRENT, Event.DIED, Event.RESTART, Event.READY, Event.CURRENT]
    states = [(member := member.after(event)).state for event in path]
    assert states == [
        State.STALE,
        State.SERVING,
        State.DEAD,
        State.STARTING,
        State.STALE,
        State.SERVING,
    ]
    assert member.incarnation == 1


def test_gone_is_final_and_every_state_can_reach_it():
    assert not any(state is State.GONE for state, _ in TRANSITIONS)
    reaching = {State.GONE}
    for _ in State:
        reaching |= {state for (state, _), after in TRANSITIONS.items() if after in reaching}
    assert reaching == set(State)


def test_a_leaving_member_is_never_restarted():
    assert Member("m", State.DRAINING).after(Event.DIED).state is State.GONE
