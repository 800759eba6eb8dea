"""The pipeline of Algorithm 1, driven by fakes: no engine, no Ray."""

from __future__ import annotations

import asyncio
import math

import pytest

from actors.records import Group
from cluster.faults import RunError
from cluster.game import Game, Pending
from cluster.record import unparsable_share
from cluster.seeds import Ticket
from tests.cluster.fakes import Gate, Learner, MemoryLedger, World, make_config, make_game, play
from tests.learner.games import group as scored


def ids(batches: list[list[Group]]) -> list[str]:
    return [group.query.group_id for groups in batches for group in groups]


def fingerprint(batches: list[list[Group]]) -> list[tuple]:
    """Everything sampled, in the order of training."""
    return [
        (g.query.group_id, g.query.text, *(a.text for a in g.answers)) for b in batches for g in b
    ]


def test_at_staleness_0_every_token_is_of_the_version_that_it_trains():
    world, learner = World(make_config()), Learner()
    learner.world = world  # checks that no member can join between step and publish
    records = asyncio.run(play(make_game(world, learner=learner)))
    assert [record.iteration for record in records] == [0, 1, 2, 3]
    for iteration, groups in enumerate(learner.batches):
        assert {g.version_min for g in groups} == {iteration}
        assert {a.version_max for g in groups for a in g.answers} == {iteration}
        assert [Ticket.parse(g.query.group_id).slot for g in groups] == [0, 1, 2, 3]
    assert [record.staleness_max for record in records] == [0, 0, 0, 0]


def test_at_staleness_0_nothing_is_generated_between_step_and_publish():
    world = World(make_config())
    asyncio.run(play(make_game(world)))
    published = [i for i, event in enumerate(world.events) if event.startswith("published")]
    assert published == [4, 9, 14, 19]  # after exactly four groups each


@pytest.mark.parametrize("staleness", [1, 2])
def test_generation_runs_ahead_by_at_most_k_versions(staleness):
    config = make_config(staleness=staleness, iterations=8)
    world, learner = World(config), Learner(seconds=0.02)
    records = asyncio.run(play(make_game(world, learner=learner)))
    assert max(record.staleness_max for record in records) == staleness
    first_publish = world.events.index("published 1")
    assert first_publish == (staleness + 1) * 4  # it did run ahead, and no further
    assert sorted(ids(learner.batches)) == ids(learner.batches)
    assert len(set(ids(learner.batches))) == 8 * 4


@pytest.mark.parametrize("staleness", [0, 1])
def test_what_an_older_policy_wrote_than_the_rule_admits_is_not_trained(staleness):
    class Forgetful(World):
        """Its engines never take new weights."""

        async def publish(self, version: int) -> float:
            del version
            return 0.0

    config = make_config(staleness=staleness, iterations=8)
    learner = Learner()
    game = make_game(Forgetful(config), learner=learner)
    with pytest.raises(RuntimeError, match=r"begun by policy version 0 and would be trained at"):
        asyncio.run(play(game))
    assert len(learner.batches) == staleness + 1


def test_a_long_answer_is_waited_for_and_not_overtaken():
    config = make_config(staleness=2, iterations=5)
    world, learner = World(config, slow={"000001-0002-000": 0.1}), Learner()
    records = asyncio.run(play(make_game(world, learner=learner)))
    assert "000001-0002-000" in [g.query.group_id for g in learner.batches[1]]
    assert max(record.staleness_max for record in records) <= 2


@pytest.mark.parametrize("kind", ["flawed", "unparsable"])
def test_a_dropped_group_is_counted_and_another_played_in_its_place(kind):
    world, learner = World(make_config()), Learner()
    setattr(world, kind, {"000001-0002-000", "000001-0002-001"})
    game = make_game(world, learner=learner)
    records = asyncio.run(play(game))
    assert ids(learner.batches[1:2])[2] == "000001-0002-002"
    assert sum(records[1].dropped.values()) == 2
    # Of two verdicts each on four trained groups and, where that is why they went, on the dropped.
    shares = [record.verdicts_unparsable for record in records]
    assert shares == pytest.approx([0, 4 / 12 if kind == "unparsable" else 0, 0, 0])
    assert game.staleness.dropped == 2
    assert all(len(groups) == 4 for groups in learner.batches)
    assert all(record.staleness_max == 0 for record in records)


def test_too_many_dropped_groups_in_a_row_stop_the_run_and_say_where_it_began():
    world = World(make_config(faults={"bad_groups": 6}))
    world.flawed = {f"000002-{s:04d}-{a:03d}" for s in range(4) for a in range(9)}
    ledger = MemoryLedger()
    game = make_game(world, ledger=ledger)
    with pytest.raises(RunError, match=r"6 groups dropped in a row.*began with.*iteration 2"):
        asyncio.run(play(game))
    assert game.iteration == 2
    assert sorted(ledger.groups) == [0, 1]


def test_a_good_group_breaks_the_row():
    world = World(make_config(faults={"bad_groups": 3}, queries=2, iterations=3))
    world.flawed = {f"00000{r}-000{s}-000" for r in range(3) for s in range(2)}
    records = asyncio.run(play(make_game(world)))
    assert [sum(record.dropped.values()) for record in records] == [2, 2, 2]


def test_a_group_with_a_bad_loss_is_replaced_and_nothing_is_published_for_it():
    world, learner = World(make_config()), Learner(bad={1: [3]})
    records = asyncio.run(play(make_game(world, learner=learner)))
    assert ids(learner.batches[1:2])[3] == "000001-0003-001"
    assert records[1].dropped == {"bad_loss": 1}
    assert [record.version for record in records] == [1, 2, 3, 4]
    assert sum(event.startswith("published") for event in world.events) == 4


def test_too_many_bad_steps_stop_the_run_and_their_groups_are_not_kept():
    learner = Learner(bad={1: [0], 2: [0], 3: []})
    game = make_game(World(make_config(faults={"bad_steps": 3})), learner=learner)
    with pytest.raises(RunError, match=r"3 training steps.*began with iteration 1: groups \[0\]"):
        asyncio.run(play(game))
    assert game.iteration == 1
    assert game.pending().groups == []  # the third had no culprit: all its groups are dropped


def test_rejected_queries_are_resampled_counted_and_kept():
    world, learner, ledger = World(make_config()), Learner(), MemoryLedger()
    world.same_text = {"000000-0001-000", "000000-0003-000"}
    gate = Gate(bad={"000000-0000-000"})
    records = asyncio.run(play(make_game(world, learner=learner, gate=gate, ledger=ledger)))
    assert records[0].rejected == {"task_unreadable": 1, "duplicate": 1}
    assert [r.query.group_id for r in ledger.rejected[0]] == ["000000-0000-000", "000000-0003-000"]
    assert ids(learner.batches[:1]) == [
        "000000-0000-001",
        "000000-0001-000",
        "000000-0002-000",
        "000000-0003-001",
    ]
    assert records[0].admitted == 4


def worst(**overrides):
    return make_config(challenger={"rejected": "worst"}, **overrides)


def test_worst_mode_counts_rejected_queries_among_the_n():
    world, learner, ledger = World(worst()), Learner(), MemoryLedger()
    gate = Gate(bad={"000001-0000-000", "000001-0003-000"})
    records = asyncio.run(play(make_game(world, learner=learner, gate=gate, ledger=ledger)))
    trained = learner.batches[1]
    assert [bool(g.answers) for g in trained] == [False, True, True, False]
    assert [g.reject_reason for g in trained] == ["task_unreadable", None, None, "task_unreadable"]
    assert ledger.rejected[1] == []  # they are rows of the batch
    assert (records[1].admitted, records[1].rejected) == (2, {"task_unreadable": 2})


def test_worst_mode_plays_again_where_no_query_was_admitted():
    world, learner = World(worst()), Learner()
    gate = Gate(bad={f"000001-{slot:04d}-000" for slot in range(4)})
    records = asyncio.run(play(make_game(world, learner=learner, gate=gate)))
    assert records[1].dropped == {"none_admitted": 4}
    assert all(g.answers for g in learner.batches[1])


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_stop_and_restore_lose_and_double_nothing(staleness, stop_at):
    config = make_config(staleness=staleness, iterations=5)
    first, second = Learner(seconds=0.01), Learner(seconds=0.01)
    ledger = MemoryLedger()
    slow = {"000002-0001-000": 0.05, "000003-0003-000": 0.03}
    game = make_game(World(config, slow=slow), learner=first, ledger=ledger)
    asyncio.run(play(game, until=stop_at))
    pending = game.pending()
    assert game.iteration == stop_at
    if staleness:
        assert pending.groups  # else this shows nothing
    again = make_game(
        World(config), learner=second, ledger=ledger, iteration=stop_at, pending=pending
    )
    records = asyncio.run(play(again))
    assert [record.iteration for record in records] == list(range(stop_at, 5))
    trained = ids(first.batches) + ids(second.batches)
    assert len(trained) == len(set(trained)) == 5 * 4
    restored = {id(group) for group in pending.groups}
    assert restored <= {id(group) for batch in second.batches for group in batch}
    assert max(record.staleness_max for record in records) <= staleness
    assert again.pending() == Pending([], [])


def stopped_in_round_1(game: Game) -> Pending:
    """Play until three of the four groups of round 1 are whole, stop, and see what is kept."""

    async def play_and_stop() -> None:
        playing = asyncio.create_task(play(game))
        while game.staleness.accepted < 4 + 3:
            await asyncio.sleep(0.001)
        game.stop.set()
        await playing

    asyncio.run(play_and_stop())
    return game.pending()


def test_stop_in_the_middle_of_a_round_then_resume_equals_uninterrupted():
    config = make_config(iterations=3)
    whole = Learner()
    asyncio.run(play(make_game(World(config), learner=whole)))

    first, second = Learner(), Learner()
    slow = World(config, slow={"000001-0002-000": 30})
    pending = stopped_in_round_1(make_game(slow, learner=first))
    assert len(pending.groups) == 3
    asyncio.run(play(make_game(World(config), learner=second, iteration=1, pending=pending)))
    assert fingerprint(first.batches) + fingerprint(second.batches) == fingerprint(whole.batches)


def test_a_held_group_with_a_bad_loss_is_replaced_by_another():
    config = make_config(iterations=2)

    pending = stopped_in_round_1(make_game(World(config, slow={"000001-0002-000": 30})))
    learner, ledger = Learner(bad={0: [1]}), MemoryLedger()
    game = make_game(World(config), learner=learner, ledger=ledger, iteration=1, pending=pending)
    asyncio.run(play(game))
    assert ledger.rejected[1] == []  # the seed of the first attempt is not drawn again
    wanted = ["000001-0000-000", "000001-0001-001", "000001-0002-000", "000001-0003-000"]
    assert ids(learner.batches) == wanted


def test_rejected_queries_of_a_stopped_round_are_kept_once():
    config = make_config(iterations=2)
    gate = Gate(bad={"000001-0001-000", "000001-0002-000"})
    ledger = MemoryLedger()

    slow = World(config, slow={"000001-0002-001": 30})
    pending = stopped_in_round_1(make_game(slow, gate=gate, ledger=ledger))
    assert [r.query.group_id for r in pending.rejected] == ["000001-0001-000"]
    game = make_game(World(config), gate=gate, ledger=ledger, iteration=1, pending=pending)
    asyncio.run(play(game))
    kept = sorted(r.query.group_id for r in ledger.rejected[1])
    assert kept == ["000001-0001-000", "000001-0002-000"]


def test_the_first_error_of_a_player_ends_the_game_as_it_was_raised():
    class Broken(World):
        async def answer(self, ticket, query):
            if query.group_id == "000001-0001-000":
                raise ValueError("the solver broke")
            return await super().answer(ticket, query)

    with pytest.raises(ValueError, match="the solver broke"):
        asyncio.run(play(make_game(Broken(make_config()))))


def test_an_error_in_a_round_ahead_is_raised_before_the_round_is_due():
    class Broken(World):
        async def score(self, ticket, query, answers):
            if ticket.round == 1:
                raise ValueError("the scorer broke")
            return await super().score(ticket, query, answers)

    world = Broken(make_config(staleness=1), slow={"000000-0000-000": 30})
    with pytest.raises(ValueError, match="the scorer broke"):
        asyncio.run(asyncio.wait_for(play(make_game(world)), 5))


def test_the_record_holds_the_figures_of_both_roles():
    (record, *_) = asyncio.run(play(make_game(World(make_config()))))
    figures = record.as_dict()
    assert figures["learner"] == {"loss": 0.5}
    assert 0 <= record.v <= 1
    assert record.parts == {"solved": record.v}
    assert record.reward_solver == pytest.approx(record.v + record.v_quality)
    assert record.reward_challenger == pytest.approx(-record.reward_solver)
    assert record.tokens_generated > 0
    assert set(record.seconds) == {"wait", "generate", "reward", "train", "publish", "iteration"}
    assert record.distinct_queries == 1.0


def test_unparsable_verdicts_are_a_share_of_all():
    groups = [scored([1, 0], verdicts=[None, 7]), scored([1, 0], verdicts=[3, 3])]
    rejected = scored([], reject_reason="echo")
    assert unparsable_share([*groups, rejected], 0) == 1 / 4
    assert unparsable_share(groups, 2) == 5 / 8
    assert math.isnan(unparsable_share([scored([1, 0])], 0))


def test_the_record_has_null_for_what_does_not_apply():
    (record, *_) = asyncio.run(play(make_game(World(make_config()))))
    figures = type(record)(**(vars(record) | {"v_quality": math.nan})).as_dict()
    assert figures["v_quality"] is None
