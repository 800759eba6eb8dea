"""Where queries come from: deterministic whatever the timing, and resumable."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from actors.records import Query, Rejected
from cluster.dataset import Row
from cluster.faults import RunError
from cluster.seeds import Seeds, Ticket
from cluster.sources import ChallengerSource, DatasetSource, MixSource, Round, rows_that_fit
from configs.errors import UserError
from configs.schema import ChallengerConfig
from tests.cluster.fakes import Gate, World, make_config


async def drawn(source, round_: Round, slots: Sequence[int]) -> list[Query | Rejected]:
    return [draw async for draw in source.queries(round_, slots)]


def names(draws: Sequence[Query | Rejected]) -> list[str]:
    """Tickets; a rejected one with its reason."""
    return [
        f"{d.query.group_id} {d.reason}" if isinstance(d, Rejected) else d.group_id for d in draws
    ]


class Jittery(World):
    """A Challenger whose calls return in any order."""

    async def challenge(self, tickets, tasks):
        await asyncio.sleep(random.random() / 100)
        return await super().challenge(tickets, tasks)


def challenger(world: World, gate: Gate | None = None, **config: object) -> ChallengerSource:
    tasks = [{"task": "add", "weight": 1.0}, {"task": "sort", "weight": 3.0}]
    section = ChallengerConfig.model_validate({"tasks": tasks} | config)
    return ChallengerSource(world, gate or Gate(), section, Seeds(world.config.seed))


def test_what_a_slot_gets_does_not_depend_on_which_call_returns_first():
    same = {"000000-0001-000", "000000-0004-000", "000000-0006-000", "000000-0006-001"}
    results = set()
    for _ in range(5):
        source = challenger(Jittery(make_config(), same_text=same))
        results.add(tuple(names(asyncio.run(drawn(source, Round(0), range(8))))))
    (result,) = results
    assert [name for name in result if "duplicate" in name] == [
        "000000-0004-000 duplicate",
        "000000-0006-000 duplicate",
        "000000-0006-001 duplicate",
    ]
    assert [name for name in result if " " not in name][-2:] == [
        "000000-0004-001",
        "000000-0006-002",
    ]


def test_queries_of_earlier_slots_do_not_wait_for_later_ones():
    class Late(World):
        async def challenge(self, tickets, tasks):
            if tickets[0].slot == 3:
                await asyncio.sleep(30)
            return await super().challenge(tickets, tasks)

    async def first_three() -> list[str]:
        draws = challenger(Late(make_config())).queries(Round(0), range(4))
        got = [await anext(draws) for _ in range(3)]
        await draws.aclose()
        return names(got)

    assert len(asyncio.run(asyncio.wait_for(first_three(), 5))) == 3


def test_tasks_are_drawn_by_weight_and_by_seed():
    source = challenger(World(make_config()))
    tickets = [Ticket(r, s) for r in range(250) for s in range(8)]
    counts = Counter(source.task(ticket).task for ticket in tickets)
    assert counts["sort"] / len(tickets) == pytest.approx(0.75, abs=0.03)
    assert [source.task(t) for t in tickets] == [source.task(t) for t in tickets]
    attempts = {source.task(Ticket(0, 0, attempt)).task for attempt in range(20)}
    assert attempts == {"add", "sort"}  # drawn anew when the gate turns a query away


def test_queries_of_one_call_are_classified_together_and_each_keeps_its_verdict():
    class Halves(World):
        def calls(self, tickets):
            return [part for part in (tickets[:2], tickets[2:]) if part]

    gate = Gate(unsafe={"000000-0001-000", "000000-0002-000", "000000-0002-001"})
    draws = asyncio.run(drawn(challenger(Halves(make_config()), gate), Round(0), range(4)))
    assert names(draws) == [
        "000000-0000-000",
        "000000-0001-000 unsafe_drugs",
        "000000-0002-000 unsafe_drugs",
        "000000-0003-000",
        "000000-0001-001",
        "000000-0002-001 unsafe_drugs",
        "000000-0002-002",
    ]
    assert gate.classified_together == [
        ["000000-0000-000", "000000-0001-000"],
        ["000000-0002-000", "000000-0003-000"],
        ["000000-0001-001", "000000-0002-001"],
        ["000000-0002-002"],
    ]


def test_the_resample_limit_stops_the_run_with_reasons_and_an_example():
    gate = Gate(bad={f"000007-{s:04d}-{a:03d}" for s in range(4) for a in range(99)})
    source = challenger(World(make_config()), gate, resample_limit=3)
    with pytest.raises(RunError, match=r"iteration 7.*12 queries \(task_unreadable 12.*'query"):
        asyncio.run(drawn(source, Round(7), range(4)))


def test_the_limit_is_an_average_over_the_iteration():
    gate = Gate(bad={f"000007-0000-{a:03d}" for a in range(9)})
    source = challenger(World(make_config()), gate, resample_limit=4)
    draws = asyncio.run(drawn(source, Round(7), range(4)))
    assert names(draws)[-1] == "000007-0000-009"


def test_worst_mode_samples_each_slot_once():
    gate = Gate(bad={"000000-0001-000"})
    source = challenger(World(make_config()), gate, rejected="worst")
    draws = asyncio.run(drawn(source, Round(0), range(3)))
    assert names(draws) == [
        "000000-0000-000",
        "000000-0001-000 task_unreadable",
        "000000-0002-000",
    ]


ROWS = [Row(f"question {i}", str(i)) for i in range(10)]


def texts(source, rounds: range, slots: int) -> list[str]:
    return [
        draw.text
        for number in rounds
        for draw in asyncio.run(drawn(source, Round(number), range(slots)))
    ]


def test_a_data_set_gives_each_row_once_per_epoch_and_shuffles_each_anew():
    source = DatasetSource(ROWS, 4, Seeds(0))
    played = texts(source, range(5), 4)
    assert sorted(played[:10]) == sorted(played[10:]) == sorted(row.query for row in ROWS)
    assert played[:10] != played[10:]
    assert played != texts(DatasetSource(ROWS, 4, Seeds(1)), range(5), 4)


def test_a_resumed_data_set_goes_on_where_it_was():
    whole = texts(DatasetSource(ROWS, 4, Seeds(0)), range(6), 4)
    assert texts(DatasetSource(ROWS, 4, Seeds(0)), range(3, 6), 4) == whole[12:]


def test_a_data_set_query_has_its_reference_and_no_completion():
    (query,) = asyncio.run(drawn(DatasetSource(ROWS, 1, Seeds(0)), Round(0), [0]))
    assert query.reference == query.text.removeprefix("question ")
    assert not query.from_challenger


def test_a_replacement_is_another_row_and_moves_nothing():
    source = DatasetSource(ROWS, 4, Seeds(0))
    round_ = Round(0)
    first = asyncio.run(drawn(source, round_, [0]))
    second = asyncio.run(drawn(source, round_, [0]))
    assert first[0].group_id != second[0].group_id
    assert texts(source, range(1, 2), 4) == texts(DatasetSource(ROWS, 4, Seeds(0)), range(1, 2), 4)


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 0.9])
def test_a_mix_holds_its_share_on_average_and_to_one_query_in_every_iteration(share):
    dataset = DatasetSource(ROWS, 4 * share, Seeds(0))
    mix = MixSource(dataset, challenger(World(make_config())))
    counts = []
    for number in range(40):
        draws = asyncio.run(drawn(mix, Round(number), range(4)))
        assert [Ticket.parse(q.group_id).slot for q in draws] == [0, 1, 2, 3]
        counts.append(sum(not query.from_challenger for query in draws))
    assert abs(sum(counts) - 40 * 4 * share) <= 1
    assert max(abs(count - 4 * share) for count in counts) < 1


def test_a_mix_replays_a_slot_from_where_it_came():
    dataset = DatasetSource(ROWS, 2, Seeds(0))
    mix = MixSource(dataset, challenger(World(make_config())))
    draws = asyncio.run(drawn(mix, Round(5), [1, 2]))
    assert [query.from_challenger for query in draws] == [False, True]


def test_rows_without_room_for_an_answer_are_left_out_and_counted():
    rows, left_out = rows_that_fit(ROWS, lambda row: row.reference < "3")
    assert (len(rows), left_out) == (3, 7)
    with pytest.raises(UserError, match=r"rollout\.context"):
        rows_that_fit(ROWS, lambda row: False)
