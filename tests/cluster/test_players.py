"""The hands into the fleets: what is asked of actors, and the weights' way to them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest
import ray
from ray.actor import ActorHandle

from actors.records import Query, Sampling
from cluster.faults import RunError
from cluster.fleet import Fleet
from cluster.game import Game
from cluster.players import Challenger, PartScorer, Policy, QualityScorer, Solver, sampling_of
from cluster.seeds import Seeds, Ticket
from cluster.sources import ChallengerSource
from configs.base import SamplingConfig
from configs.errors import UserError
from configs.fleets import FleetConfig
from configs.schema import TaskConfig
from tests.cluster.engine import Engine
from tests.cluster.fakes import Gate, Learner, MemoryLedger, make_config, play

pytestmark = pytest.mark.usefixtures("ray_session")
SAMPLING = sampling_of(SamplingConfig(max_tokens=7, stop=["."]), logprobs=True)


class Publisher:
    """Gives every member the version; may be told to fail by itself."""

    def __init__(self) -> None:
        self.told: list[set[str]] = []
        self.error: Exception | None = None
        self.lost: dict[str, str] = {}
        self.parity: dict[str, float] = {}

    async def publish(self, version: int, members: Mapping[str, ActorHandle]) -> Publisher:
        self.told.append(set(members))
        if self.error is not None:
            raise self.error
        await asyncio.gather(*(member.take.remote(version) for member in members.values()))
        return self


def make_fleet(replicas: int = 2, restarts: int = 10) -> Fleet:
    actor = ray.remote(Engine).options(num_cpus=0)
    config = FleetConfig(replicas=replicas, deadline_s=20, start_deadline_s=60, restarts=restarts)
    return Fleet("rollout", config, actor.remote)


def with_policy(use, *, replicas: int = 2, restarts: int = 10, colocated: bool = False) -> None:
    async def run() -> None:
        fleet = make_fleet(replicas, restarts)
        try:
            await fleet.start()
            policy = Policy(fleet, Publisher(), colocated=colocated)
            await asyncio.wait_for(use(policy), 40)
        finally:
            await fleet.stop()

    asyncio.run(run())


def players(policy: Policy, *, seeded: bool = True) -> tuple[Challenger, Solver]:
    def encode(*texts: str) -> np.ndarray:
        return np.frombuffer("|".join(texts).encode(), dtype=np.uint8).astype(np.int32)

    seeds = Seeds(0)
    return (
        Challenger(policy, encode, SAMPLING, 2, seeds, seeded),
        Solver(policy, encode, SAMPLING, 3, seeds, seeded),
    )


TICKETS = [Ticket(0, slot) for slot in range(5)]


def test_queries_keep_their_place_prompt_and_text():
    async def use(policy: Policy) -> None:
        challenger, _ = players(policy)
        tasks = [TaskConfig(task=f"task {i}", template="t") for i in range(5)]
        queries = await challenger.challenge(TICKETS, tasks)
        for ticket, task, query in zip(TICKETS, tasks, queries, strict=True):
            made = query.completion
            assert made is not None
            assert query.group_id == ticket.group_id
            assert (query.task, query.template) == (task.task, "t")
            assert bytes(made.prompt_token_ids.astype(np.uint8)).decode() == f"{task.task}|t"
            assert made.seed == Seeds(0).query(ticket)
            assert query.text == made.text.strip()

    with_policy(use, replicas=1)


def test_a_roles_sampling_reaches_the_engine_whole():
    config = SamplingConfig(temperature=0.7, top_p=0.9, max_tokens=7, stop=["."])
    assert sampling_of(config, logprobs=True) == Sampling(0.7, 0.9, 7, (".",), True)


def test_queries_are_divided_over_the_members_and_into_calls():
    async def use(policy: Policy) -> None:
        challenger, _ = players(policy)
        assert [len(part) for part in challenger.calls(TICKETS)] == [2, 2, 1]
        assert [len(part) for part in challenger.calls(TICKETS[:2])] == [1, 1]

    with_policy(use)


@pytest.mark.parametrize("seeded", [True, False])
def test_the_answers_are_one_call_with_a_seed_each(seeded):
    async def use(policy: Policy) -> None:
        _, solver = players(policy, seeded=seeded)
        answers = await solver.answer(TICKETS[1], Query("g", "what?"))
        ((asked),) = [await m.asked.remote() for m in policy.fleet.serving().values()]
        expected = Seeds(0).answers(TICKETS[1], 3) if seeded else [None] * 3
        assert asked == [expected]
        assert len(answers) == 3

    with_policy(use, replicas=1)


def test_scorers_hand_over_texts_and_name_what_they_get():
    async def use(policy: Policy) -> None:
        answers = await players(policy)[1].answer(TICKETS[0], Query("g", "what?"))
        part = PartScorer("length", policy.fleet)
        quality = QualityScorer(policy.fleet, Seeds(0))
        scores = await part.score(TICKETS[0], Query("g", "what?", reference="r"), answers)
        assert scores.parts["length"].tolist() == [len(a.text) for a in answers]
        verdicts = (await quality.score(TICKETS[0], Query("g", "what?"), answers)).verdicts
        assert [v.text for v in verdicts] == [a.text for a in answers]
        assert [v.score for v in verdicts] == [s % 8 for s in Seeds(0).verdicts(TICKETS[0], 3)]

    with_policy(use, replicas=1)


def test_a_living_member_that_a_publish_did_not_reach_is_restarted():
    async def use(policy: Policy) -> None:
        policy.publisher.lost = {"rollout-0": "silent"}
        before = policy.fleet.describe()[0]["pid"]
        await policy.publish(4)
        assert set(policy.fleet.serving()) == {"rollout-1"}
        while len(policy.fleet.serving()) < 2:
            await asyncio.sleep(0.05)
        assert policy.fleet.describe()[0]["pid"] != before

    with_policy(use)


def test_engines_lost_with_one_transfer_are_one_of_the_restarts_that_a_run_has():
    async def use(policy: Policy) -> None:
        policy.publisher.lost = dict.fromkeys(policy.fleet.serving(), "x has died in a transfer")
        await policy.publish(4)
        while len(policy.fleet.serving()) < 3:
            await asyncio.sleep(0.05)
        assert policy.fleet.restarts == 3
        policy.publisher.lost = {"rollout-0": "another", "rollout-1": "and another"}
        await policy.publish(5)
        while len(policy.fleet.serving()) < 3:
            await asyncio.sleep(0.05)
        policy.publisher.lost = {"rollout-0": "the last", "rollout-1": "and another"}
        await policy.publish(6)
        with pytest.raises(RunError, match=r"used up its 3 restarts.* x has died in a transfer"):
            await policy.generate([])

    with_policy(use, replicas=3, restarts=1)


def test_a_publishers_own_error_is_not_tried_again():
    async def use(policy: Policy) -> None:
        policy.publisher.error = UserError("version 3 here and 4 there")
        with pytest.raises(UserError, match="version 3 here"):
            await policy.publish(4)
        assert len(policy.publisher.told) == 1

    with_policy(use, replicas=1)


@pytest.mark.parametrize("published", [True, False])
def test_colocated_engines_sleep_during_the_step_and_wake_for_the_publish(published):
    async def use(policy: Policy) -> None:
        (engine,) = policy.fleet.serving().values()
        async with policy.weights_move():
            assert await engine.held.remote() == (0, True)
            if published:
                await policy.publish(1)  # the engine refuses weights while it is asleep
        assert await engine.held.remote() == (int(published), False)

    with_policy(use, replicas=1, colocated=True)


def games(replicas: int) -> list[tuple]:
    """The groups of two iterations played by so many engines."""
    learner = Learner()
    config = make_config(iterations=2)

    async def use(policy: Policy) -> None:
        challenger, solver = players(policy)
        scorers = [PartScorer("solved", policy.fleet), QualityScorer(policy.fleet, Seeds(0))]
        game = Game(
            config,
            source=ChallengerSource(challenger, Gate(), config.challenger, Seeds(0)),
            solver=solver,
            scorers=scorers,
            weights=policy,
            learner=learner,
            ledger=MemoryLedger(),
        )
        await play(game)

    with_policy(use, replicas=replicas)
    return [
        (g.query.group_id, g.query.task, g.query.text, *(a.text for a in g.answers))
        for batch in learner.batches
        for g in batch
    ]


def test_the_same_games_with_one_and_with_two_engines():
    one = games(1)
    assert len(one) == 8
    assert one == games(2)
