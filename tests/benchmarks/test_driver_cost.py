"""What the driver costs: that its parts are told apart, and where a profile sees the time go."""

from __future__ import annotations

import asyncio
import cProfile

import pytest

from benchmarks import driver_cost


def test_the_drivers_cost_is_that_of_its_parts():
    figures = driver_cost.cost(members=4, queries=8, iterations=2).figures()
    assert set(figures["parts"]) == {
        "challenger prompts",
        "solver prompts",
        "batches",
        "ledger",
        "game",
    }
    assert all(seconds > 0 for seconds in figures["parts"].values())
    assert len(figures["cpu_s_per_group"]["samples"]) == 2
    median = figures["cpu_s_per_group"]["median"]
    assert figures["groups_per_cpu_s"]["samples"][0] > 0
    assert sum(figures["parts"].values()) == pytest.approx(median, rel=0.5)


def test_the_profile_names_modules_and_gives_c_functions_to_their_callers():
    async def turn() -> None:
        await asyncio.sleep(0)
        sum(range(20_000_000))  # in C

    profile = cProfile.Profile()
    with profile:
        asyncio.run(turn())
    found = driver_cost.shares(profile)
    assert next(iter(found)) == __name__
    assert found[__name__] > found["asyncio"] > 0
    assert sum(found.values()) == pytest.approx(1)


def test_the_profile_of_the_driver_finds_its_modules():
    found = driver_cost.profiled(members=4, queries=8)
    assert any(name.startswith("cluster.") for name in found)
    assert min(found.values()) > driver_cost.LEAST_SHARE
