"""The real game in virtual time, in small: the same faults and rules as on large fleets."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from actors.records import Group
from benchmarks import measure, simulate, virtual_time
from benchmarks.simulated import NORMAL, Failures, Lengths, Times
from benchmarks.simulation import Line, Simulation, check, make_config
from benchmarks.simulation import simulate as simulated
from cluster.pending import load_pending, save_pending
from cluster.seeds import Purpose, Seeds, Ticket

HARSH = Failures(mean_life_s=300.0, hung_share=0.3)
MEMBERS, ITERATIONS = 8, 8
LIFE_S = (15.0, 60.0)


@functools.cache
def played(staleness: int, failures: Failures | None = None) -> tuple[Line, Simulation]:
    return simulated(MEMBERS, staleness, ITERATIONS, failures=failures)


def trained(simulation: Simulation) -> list[Group]:
    """The groups of the first iterations, which every run here has."""
    return [group for groups in simulation.books.iterations[:ITERATIONS] for group in groups]


def lengths(simulation: Simulation) -> list[int]:
    return [len(a.token_ids) for group in trained(simulation) for a in group.answers]


@pytest.mark.parametrize("failures", [None, HARSH])
def test_the_same_seed_gives_the_same_line(failures):
    line, _ = played(1, failures)
    again, _ = simulated(MEMBERS, 1, ITERATIONS, failures=failures)
    other, _ = simulated(MEMBERS, 1, ITERATIONS, failures=failures, seed=1)
    assert line == again
    assert line != other


def test_at_staleness_0_every_token_is_of_the_version_that_it_trains():
    line, simulation = played(0)
    assert (line.staleness_mean, line.staleness_max) == (0, 0)
    assert (line.spanned, line.spanned_max) == (0, 0)
    for iteration, groups in enumerate(simulation.books.iterations):
        completions = [a for g in groups for a in g.answers] + [g.query.completion for g in groups]
        assert {(c.version_min, c.version_max) for c in completions} == {(iteration, iteration)}


@pytest.mark.parametrize("failures", [None, HARSH])
@pytest.mark.parametrize("staleness", [1, 2, 4])
def test_generation_runs_ahead_by_up_to_k_versions_and_no_further(staleness, failures):
    line, simulation = played(staleness, failures)
    assert line.staleness_max == staleness
    for iteration, groups in enumerate(simulation.books.iterations):
        assert all(iteration - group.version_min <= staleness for group in groups)
    # Weights change while answers are written, and it shows.
    assert line.spanned > 0
    assert 1 <= line.spanned_max <= staleness


def test_overlap_pays_where_lengths_have_a_long_tail():
    lines = [played(staleness)[0] for staleness in (0, 1, 2, 4)]
    speeds = [line.groups_per_s for line in lines]
    assert speeds == sorted(speeds)
    assert speeds[1] > 1.3 * speeds[0]
    assert [line.learner_idle for line in lines] == sorted(
        (line.learner_idle for line in lines), reverse=True
    )


@pytest.mark.parametrize("staleness", [0, 2])
def test_failures_lose_and_double_nothing(staleness):
    line, simulation = played(staleness, HARSH)  # which checks it
    assert line.died > 0
    assert line.hung > 0
    assert line.calls_redone > 0
    assert line.tokens_redone > 0
    assert line.engines_down > 0
    # What is trained depends on nobody's death.
    assert [g.query.group_id for g in trained(simulation)] == [
        g.query.group_id for g in trained(played(0)[1])
    ]
    assert lengths(simulation) == lengths(played(0)[1])
    assert line.groups_per_s < played(staleness)[0].groups_per_s


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_answers_are_trained_whatever_their_length(staleness):
    _, simulation = played(staleness, HARSH if staleness == 4 else None)
    found = np.sort(lengths(simulation))
    assert lengths(simulation) == lengths(played(0)[1])
    law = Times().answer
    # Kolmogorov-Smirnov at 1%, against the law that lengths are drawn from, up to its limit.
    below = found[found < law.limit]
    expected = [NORMAL.cdf(math.log((n + 0.5) / law.median) / law.sigma) for n in below]
    shares = np.searchsorted(found, below, side="right") / len(found)
    assert np.abs(shares - expected).max() < 1.63 / math.sqrt(len(found))
    assert (found >= 4 * law.median).mean() > 0.02  # the tail is there to be lost


@pytest.mark.parametrize("staleness", [0, 2])
def test_answers_are_trained_whatever_their_length_however_often_the_run_is_stopped(
    staleness, tmp_path
):
    times, chance = Times(), random.Random(0)
    config = make_config(times, MEMBERS, staleness, seed=0)

    async def life(before: Simulation | None) -> Simulation:
        pending = load_pending(tmp_path) if before else None
        simulation = Simulation(config, times, None, before, pending)
        game, fleets = simulation.game, simulation.fleets.values()
        await asyncio.gather(*(fleet.start() for fleet in fleets))
        await game.weights.publish(game.iteration)
        # In the middle of a round, most of the time: what is in flight then is lost.
        asyncio.get_running_loop().call_later(chance.uniform(*LIFE_S), game.stop.set)
        async with contextlib.aclosing(game.play()) as records:
            async for _ in records:
                pass
        await asyncio.gather(*(fleet.stop() for fleet in fleets))
        save_pending(game.pending(), tmp_path)
        return simulation

    async def lives() -> tuple[Simulation, int]:
        simulation, stops = await life(None), 1
        while simulation.game.iteration < ITERATIONS:
            simulation, stops = await life(simulation), stops + 1
        return simulation, stops

    simulation, stops = virtual_time.run(lives())
    check(simulation)
    assert stops > ITERATIONS
    assert lengths(simulation) == lengths(played(0)[1])


def test_the_shares_of_the_engines_time_make_a_whole():
    line, simulation = played(2, HARSH)
    for share in (line.engines_idle, line.engines_updating, line.engines_down, line.learner_idle):
        assert 0 < share < 1
    busy = 1 - line.engines_idle - line.engines_updating - line.engines_down
    usage = simulation.crews["rollout"].usage
    assert 0 < busy < 1
    assert 1 < line.batch < Times().rollout.sequences
    assert usage["tokens_redone"] < usage["tokens"]


def test_a_length_follows_from_its_seed_alone():
    law = Lengths(median=100, sigma=1.0, limit=1000)
    seeds = [Seeds(0).derive(Purpose.ANSWER, n) for n in range(20_000)]
    found = np.array([law.of(seed) for seed in seeds])
    assert np.median(found) == pytest.approx(100, rel=0.03)
    assert (found > 100 * math.e).mean() == pytest.approx(1 - NORMAL.cdf(1), rel=0.05)
    assert found.max() == 1000
    assert (law.of(0), law.of(2**63 - 1)) == (1, 1000)


def lose(batches: list[list[Group]]) -> None:
    del batches[1][3]


def double(batches: list[list[Group]]) -> None:
    batches[1][3] = batches[1][2]


def repeat(batches: list[list[Group]]) -> None:
    batches[2] = batches[1]


def mix_up(batches: list[list[Group]]) -> None:
    batches[1][0], batches[1][1] = (
        replace(batches[1][0], answers=batches[1][1].answers),
        replace(batches[1][1], answers=batches[1][0].answers),
    )


def pass_over(batches: list[list[Group]]) -> None:
    query = batches[1][2].query
    ticket = Ticket.parse(query.group_id)
    later = replace(ticket, attempt=ticket.attempt + 1).group_id
    batches[1][2] = replace(batches[1][2], query=replace(query, group_id=later))


@pytest.mark.parametrize("fault", [lose, double, repeat, mix_up, pass_over])
def test_the_check_sees_what_is_wrong(fault):
    _, simulation = simulated(4, 1, 2)
    batches = simulation.books.iterations
    fault(batches)
    simulation.learner.batches = [[g.query.group_id for g in groups] for groups in batches]
    with pytest.raises(RuntimeError, match=r"the simulated game is wrong: (slots|answers|.*first)"):
        check(simulation)


def test_the_check_sees_work_that_was_done_twice_and_books_that_differ():
    _, simulation = simulated(4, 0, 2)
    seed = simulation.books.iterations[0][0].answers[0].seed
    simulation.crews["rollout"].delivered[seed] += 1
    with pytest.raises(RuntimeError, match="1 sequences handed over twice"):
        check(simulation)
    simulation.learner.batches[0].reverse()
    with pytest.raises(RuntimeError, match="what the ledger and the learner got"):
        check(simulation)


def test_the_command_writes_the_table_with_what_was_assumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(simulate, "ITERATIONS", (2, 2))
    monkeypatch.setattr(
        "sys.argv",
        ["simulate.py", "--members", "4", "--staleness", "0", "1", "--only", "table"],
    )
    simulate.main()
    written = json.loads((tmp_path / "simulation-table.json").read_text())
    lines = [(row["members"], row["failures"], row["staleness"]) for row in written["table"]]
    assert lines == [(4, False, 0), (4, False, 1), (4, True, 0), (4, True, 1)]
    assert written["assumed"]["times"]["publish_s"] == Times().publish_s
    assert "What Ray costs for each remote call is in neither" in written["about"]
    assert written["command"].startswith("python -m benchmarks.simulate --members 4")
    assert "groups/s" in capsys.readouterr().out


def test_more_members_or_groups_are_simulated_for_fewer_iterations(monkeypatch):
    asked = []

    def line_of(members: int, staleness: int, iterations: int, **_: object) -> tuple[Line, None]:
        asked.append((members, iterations))
        return played(staleness)[0], None

    monkeypatch.setattr(simulate, "simulate", line_of)
    simulate.table(argparse.Namespace(members=[8, 64, 1024], staleness=[0], seed=0))
    assert asked[::2] == [(8, 64), (64, 32), (1024, 6)]
