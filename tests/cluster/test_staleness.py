"""The staleness rule: nothing is begun that would be trained more than k versions later."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.staleness import Staleness


def test_capacity_by_hand():
    rule = Staleness(staleness=1, batch=4)
    assert rule.capacity == 8  # the batch in hand and one ahead
    rule.submit(8)
    assert rule.capacity == 0
    for _ in range(4):
        rule.accept()
    assert rule.capacity == 0  # accepted groups still wait to be trained
    rule.train()
    assert rule.capacity == 4


def test_at_staleness_0_a_dropped_group_makes_room_for_one():
    rule = Staleness(staleness=0, batch=2)
    rule.submit(2)
    rule.replace()
    assert (rule.running, rule.dropped, rule.capacity) == (2, 1, 0)
    rule.accept()
    rule.accept()
    rule.train()
    assert rule.capacity == 2


def test_a_restored_run_counts_what_it_holds():
    rule = Staleness(staleness=1, batch=4, version=10, accepted=10 * 4 + 6)
    assert rule.capacity == 2


def test_more_than_the_capacity_is_refused():
    with pytest.raises(RuntimeError, match="5 groups begun where the capacity is 4"):
        Staleness(staleness=0, batch=4).submit(5)
    with pytest.raises(RuntimeError, match="never begun"):
        Staleness(staleness=0, batch=4).accept()


@given(
    st.integers(0, 3),
    st.integers(1, 5),
    st.lists(st.sampled_from(["submit", "accept", "replace", "retract", "train"]), max_size=200),
)
def test_invariants_hold_in_every_order_of_events(staleness, batch, events):
    rule = Staleness(staleness, batch)
    submitted = trained = 0
    for event in events:
        waiting = rule.accepted - trained
        if event == "submit" and rule.capacity > 0:
            rule.submit(1)
            submitted += 1
        elif event == "accept" and rule.running:
            rule.accept()
        elif event == "replace" and rule.running:
            rule.replace()
            submitted += 1
        elif event == "retract" and waiting:
            rule.retract(1)
            submitted += 1
        elif event == "train" and waiting >= batch:
            trained += batch
            rule.train()
        assert rule.submitted == submitted == rule.accepted + rule.dropped + rule.running
        assert rule.capacity >= 0
        # A group begun now is trained at the latest as number accepted + running: at most k
        # versions from now.
        last_batch = (rule.accepted + rule.running + rule.capacity - 1) // batch
        assert last_batch - rule.version <= staleness
