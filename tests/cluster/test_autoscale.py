"""The policy of sizes against worlds whose load it changes by its decisions."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.autoscale import (
    QUEUE,
    WAITING_IN_TURN,
    WAITING_OVERLAPPED,
    Decision,
    Measure,
    Memory,
    Observation,
    decide,
)
from cluster.autoscaling import Autoscaler
from configs.fleets import AutoscaleConfig, FleetConfig, RolloutConfig

QUEUED = AutoscaleConfig(min=1, max=16, target=8)
WAITS = AutoscaleConfig(min=1, max=32, target=0.2)
EVERY_S = 20.0
JOIN_S = 90.0


@dataclass
class Life:
    """What became of a fleet: its size at each observation, and the decisions by their time."""

    sizes: list[int]
    decisions: list[tuple[float, Decision]]

    @property
    def turns(self) -> int:
        """How often growth followed shrinking, or the other way round."""
        ways = [b - a for a, b in itertools.pairwise(self.sizes) if a != b]
        return sum((a > 0) != (b > 0) for a, b in itertools.pairwise(ways))


World = Callable[[float, int], float]
"""What is measured at a time with so many members that serve."""


def live(
    config: AutoscaleConfig,
    measure: Measure,
    world: World,
    *,
    size: int,
    hours: float,
    places: int = 1000,
) -> Life:
    """A fleet under the policy: newcomers take `JOIN_S` to serve, and there are `places`."""
    memory, serving, ready = Memory(), size, 0.0
    life = Life([], [])
    for step in range(int(hours * 3600 / EVERY_S)):
        time = step * EVERY_S
        placed = min(size, places)
        serving = min(serving, placed) if time < ready else placed
        seen = Observation(time, size, serving, size - placed, world(time, serving))
        decision, memory = decide(config, measure, seen, memory)
        life.sizes.append(size)
        if decision is not None:
            assert decision.size != size
            assert config.min <= decision.size <= config.max
            size, ready = decision.size, time + JOIN_S
            life.decisions.append((time, decision))
    return life


def queue(calls: Callable[[float], float]) -> World:
    """Calls in all, shared by those that serve."""
    return lambda time, serving: calls(time) / serving


def in_turn(generation: float, step: float) -> World:
    """The learner's waiting share: a group batch takes `generation` member-seconds, by turns."""
    return lambda _, serving: (generation / serving) / (generation / serving + step)


def overlapped(generation: float, step: float) -> World:
    return lambda _, serving: max(0.0, 1 - step * serving / generation)


def noisy(world: World, spread: float, seed: int) -> World:
    chance = random.Random(seed)
    return lambda time, serving: world(time, serving) * chance.uniform(1 - spread, 1 + spread)


def test_a_steady_load_is_met_and_then_left_alone():
    life = live(QUEUED, QUEUE, queue(lambda _: 60), size=1, hours=3)
    assert life.sizes[-1] == math.ceil(60 / 8)
    assert life.turns == 0
    assert life.decisions[-1][0] < 3600


@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
def test_a_step_in_the_load_is_followed_up_and_down_without_turning_back(share):
    def calls(time: float) -> float:
        return 20 if not 3600 <= time < 3 * 3600 else 20 + 128 * share

    life = live(QUEUED, QUEUE, queue(calls), size=3, hours=5)
    per_hour = int(3600 / EVERY_S)
    assert life.sizes[per_hour - 1] == 3
    size = life.sizes[3 * per_hour - 1]
    assert size == 16 or (size - 1) * 8 < calls(3700) <= size * 8 * 1.2
    assert life.sizes[-1] == 3
    assert life.turns == 1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("load", [30, 33, 63, 65])
def test_noise_makes_no_fleet_flap(load, seed):
    """Also not where the load is just above or below what a size is for."""
    life = live(QUEUED, QUEUE, noisy(queue(lambda _: load), 0.3, seed), size=4, hours=6)
    assert life.turns <= 1
    assert abs(life.sizes[-1] - load / 8) <= 2
    assert len(life.decisions) <= 4


@pytest.mark.parametrize("seed", range(5))
def test_a_long_tail_moves_a_fleet_seldom_and_with_a_longer_mean_hardly(seed):
    """Rare bursts of up to eight times the mean, which make half of the load."""

    def calls(chance: random.Random) -> Callable[[float], float]:
        return lambda _: 28 * min(chance.paretovariate(1.5) / 3, 8)

    life = live(QUEUED, QUEUE, queue(calls(random.Random(seed))), size=4, hours=12)
    assert life.turns <= 24
    slow = {"smoothing_s": 900.0, "grow_after_s": 900.0, "shrink_after_s": 1800.0}
    patient = QUEUED.model_copy(update=slow)
    life = live(patient, QUEUE, queue(calls(random.Random(seed))), size=4, hours=12)
    assert life.turns <= 3
    assert set(life.sizes) <= {2, 3, 4, 5, 6}


def test_bursts_count_by_their_mean():
    """Rounds of a minute with 128 calls and a minute with none: 64 in the mean, for 8 actors."""

    def calls(time: float) -> float:
        return 128.0 if time % 120 < 60 else 0.0

    life = live(QUEUED, QUEUE, queue(calls), size=2, hours=6)
    assert 6 <= life.sizes[-1] <= 10
    assert life.turns <= 1


def test_a_ramp_is_followed_in_one_direction():
    life = live(QUEUED, QUEUE, queue(lambda time: 8 + time / 150), size=1, hours=4)
    assert life.turns == 0
    served = [8 * size / (8 + EVERY_S * i / 150) for i, size in enumerate(life.sizes)]
    assert min(served[90:]) > 0.6  # never far behind, from half an hour on


@pytest.mark.parametrize("spread", [0.0, 0.1])
@pytest.mark.parametrize("size", [1, 6, 20, 32])
def test_rollout_by_turns_settles_where_the_learner_waits_as_long_as_asked(size, spread):
    """400 member-seconds of generation, steps of 20 s: at 20% waiting it is 80 members of at most
    32, and with steps of 200 s it is 8."""
    few = live(WAITS, WAITING_IN_TURN, noisy(in_turn(400, 200), spread, 1), size=size, hours=6)
    assert 7 <= few.sizes[-1] <= 10
    assert few.turns <= 1
    many = live(WAITS, WAITING_IN_TURN, noisy(in_turn(400, 20), spread, 1), size=size, hours=6)
    assert many.sizes[-1] == 32


@pytest.mark.parametrize("spread", [0.0, 0.1])
@pytest.mark.parametrize("size", [1, 6, 20, 32])
def test_rollout_that_runs_ahead_settles_too(size, spread):
    """1,000 member-seconds a step of 100 s: 10 members feed the learner, 8 let it wait for 20%."""
    world = noisy(overlapped(1000, 100), spread, 2)
    life = live(WAITS, WAITING_OVERLAPPED, world, size=size, hours=6)
    assert 8 <= life.sizes[-1] <= 9
    assert life.turns <= 1


def recorded() -> World:
    """The waiting of a real run, which `waiting_trace.json` describes, again and again: what its
    actors took for an iteration is shared by those that serve, all else takes as long as it did."""
    trace = json.loads(Path(__file__).with_name("waiting_trace.json").read_text("utf-8"))

    def waits(time: float, serving: int) -> float:
        waited, whole = trace["seconds"][round(time / EVERY_S) % len(trace["seconds"])]
        shared = waited * trace["rollout"] / serving
        return shared / (shared + whole - waited)

    return waits


@pytest.mark.parametrize("size", [1, 8, 32])
def test_on_a_recorded_run_a_fleet_settles(size):
    """It waits for 66% of its time with one actor, and for a fifth with 8."""
    life = live(WAITS, WAITING_IN_TURN, recorded(), size=size, hours=6)
    assert 7 <= life.sizes[-1] <= 9
    assert life.turns <= 1
    assert life.decisions[-1][0] < 2 * 3600 if life.decisions else size == 8
    waited = [recorded()(step * EVERY_S, life.sizes[-1]) for step in range(70)]
    assert sum(waited) / 70 == pytest.approx(0.2, abs=0.04)


def test_a_fleet_that_cannot_be_placed_is_not_asked_to_grow_further():
    life = live(QUEUED, QUEUE, queue(lambda _: 128), size=2, hours=4, places=3)
    assert life.sizes[-1] == 4
    assert [decision.size for _, decision in life.decisions] == [4]


def test_demand_for_places_is_withdrawn_when_the_load_is_gone():
    life = live(
        QUEUED, QUEUE, queue(lambda time: 128 if time < 3600 else 16), size=2, hours=4, places=3
    )
    assert max(life.sizes) == 4
    assert life.sizes[-1] == 2


def test_nothing_is_decided_while_members_join_or_restart():
    memory = Memory()
    for step in range(100):
        seen = Observation(step * EVERY_S, 4, 3, 0, 100.0)
        decision, memory = decide(QUEUED, QUEUE, seen, memory)
        assert decision is None
    assert memory == Memory()


def test_a_size_out_of_bounds_is_brought_back_at_once():
    for size, bound in ((20, 16), (1, 2)):
        config = QUEUED.model_copy(update={"min": 2})
        decision, _ = decide(config, QUEUE, Observation(0.0, size, size, 0, 8.0), Memory())
        assert decision == Decision(bound, f"{size} actors are outside 2 to 16")


def test_the_reason_is_in_words():
    grown = live(QUEUED, QUEUE, queue(lambda _: 24.0), size=1, hours=1).decisions[0][1]
    assert grown == Decision(2, "24.0 calls per actor, target 8")
    waits = live(WAITS, WAITING_IN_TURN, in_turn(100, 100), size=1, hours=1).decisions[0][1]
    assert waits.reason == "the learner waits 50% of its time, target 0.2"


def test_bounds_and_targets_that_make_no_sense_are_refused():
    with pytest.raises(ValidationError, match="min 4 is above max 2: lower min or raise max"):
        AutoscaleConfig(min=4, max=2, target=1)
    with pytest.raises(ValidationError, match="learner may wait: set it below 1"):
        RolloutConfig(autoscale=AutoscaleConfig(max=2, target=8))
    assert FleetConfig(autoscale=QUEUED).autoscale == QUEUED


class GivesUp:
    """A fleet under too much load, whose newcomers are given up before the next observation."""

    def __init__(self) -> None:
        self.config = FleetConfig(autoscale=QUEUED)
        self.target, self.call_seconds = 4, 0.0
        self.unplaced: dict[str, str] = {}
        self.asked: list[float] = []
        self.time = 0.0

    def serving(self) -> dict[str, None]:
        return dict.fromkeys(["a", "b", "c", "d"])

    def resize(self, size: int) -> None:
        self.asked.append(self.time)
        self.target = size


def test_newcomers_that_were_given_up_are_not_asked_for_again_at_once():
    fleet: Any = GivesUp()
    scaler = Autoscaler({"judge": fleet}, 0, 0.0)
    for step in range(1, 200):
        fleet.time = step * EVERY_S
        fleet.call_seconds += 4 * 40 * EVERY_S
        scaler.observe(fleet.time, 0.0)
        if step % 2:
            fleet.target = 4
    pauses = [b - a for a, b in itertools.pairwise(fleet.asked)]
    assert len(pauses) >= 2
    assert min(pauses) >= QUEUED.shrink_after_s
