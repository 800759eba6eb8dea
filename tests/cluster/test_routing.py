"""Who is next: as a search through all members would find it, at a cost that does not grow."""

from __future__ import annotations

import random

import pytest

from cluster.routing import LeastLoaded


@pytest.mark.parametrize("seed", range(10))
def test_it_takes_what_a_search_through_all_would_take(seed):
    chance = random.Random(seed)
    routes: LeastLoaded[int] = LeastLoaded()
    loads: dict[int, int] = {}
    for item in range(5):
        routes.add(item, 0)
        loads[item] = 0
    for step in range(2000):
        move = chance.random()
        if move < 0.5:
            taken = routes.take()
            assert (taken is None) == (not loads)
            if taken is not None:
                assert loads[taken] == min(loads.values())
                loads[taken] += 1
        elif move < 0.9:
            busy = [item for item, load in loads.items() if load]
            if busy:
                item = chance.choice(busy)
                routes.give_back(item)
                loads[item] -= 1
        elif move < 0.95 and loads:
            item = chance.choice(list(loads))
            routes.remove(item)
            del loads[item]
        else:
            loads[100 + step] = chance.randint(0, 4)
            routes.add(100 + step, loads[100 + step])
        assert len(routes) == len(loads)


def test_equals_take_turns():
    routes: LeastLoaded[str] = LeastLoaded()
    for item in "abc":
        routes.add(item, 0)
    assert [routes.take() for _ in range(6)] == list("abcabc")


def test_what_has_left_is_neither_taken_nor_given_back():
    routes: LeastLoaded[str] = LeastLoaded()
    routes.add("a", 0)
    routes.take()
    routes.remove("a")
    routes.remove("a")
    routes.give_back("a")
    assert routes.take() is None
    routes.add("a", 1)
    routes.give_back("a")
    assert routes.take() == "a"


def test_a_take_among_many_members_looks_at_few():
    routes: LeastLoaded[_Counted] = LeastLoaded()
    for _ in range(1024):
        routes.add(_Counted(), 0)
    _Counted.looks = 0
    for _ in range(4096):
        routes.take()
    assert _Counted.looks < 4096 * 20


class _Counted:
    """Counts how often a table looks at any of its kind."""

    looks = 0

    def __hash__(self) -> int:
        _Counted.looks += 1
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other
