"""A game without engines: a Challenger, Solver, learner and weights that only keep books."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.gate import Safety
from actors.records import Completion, Group, Query, Rejected, Scores, Verdict
from cluster.game import Game, Pending
from cluster.seeds import Seeds, Ticket
from cluster.sources import ChallengerSource
from configs.schema import RunConfig


def make_config(**overrides: object) -> RunConfig:
    """A small run; `overrides` replace whole sections."""
    settings: dict[str, object] = {
        "algorithm": "lsp",
        "run_dir": "unused",
        "iterations": 4,
        "queries": 4,
        "answers": 2,
        "model": {"path": "unused"},
        "challenger": {"tasks": [{"task": "add"}, {"task": "sort", "weight": 3}]},
        "rewards": {
            "parts": [{"kind": "verifier", "name": "solved", "function": "a:b"}],
        },
    }
    return RunConfig.model_validate(settings | overrides)


def completion(text: str, version: int, seed: int = 0) -> Completion:
    """A completion of as many tokens as its text has characters, one version all through."""
    ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
    prompt = np.array([1, 2], dtype=np.int32)
    return Completion(prompt, ids, text, "stop", version, version, seed)


@dataclass
class World:
    """The state the fakes share: the engines' version, and what happened in which order."""

    config: RunConfig
    version: int = 0
    events: list[str] = field(default_factory=list)
    flawed: set[str] = field(default_factory=set)
    """Group ids whose reward is NaN."""
    unparsable: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    """Seconds that answering a group takes."""
    same_text: set[str] = field(default_factory=set)
    """Group ids whose query repeats a text."""
    moving: bool = False
    """Whether `weights_move` is held."""

    async def challenge(self, tickets: Sequence[Ticket], tasks: Sequence[object]) -> list[Query]:
        await asyncio.sleep(0)
        return [self._query(ticket) for ticket in tickets]

    def calls(self, tickets: Sequence[Ticket]) -> list[Sequence[Ticket]]:
        return [[ticket] for ticket in tickets]

    def _query(self, ticket: Ticket) -> Query:
        seed = Seeds(self.config.seed).query(ticket)
        text = "the same" if ticket.group_id in self.same_text else f"query {seed}"
        return Query(ticket.group_id, text, completion=completion(text, self.version, seed))

    async def answer(self, ticket: Ticket, query: Query) -> tuple[Completion, ...]:
        begun = self.version
        await asyncio.sleep(self.slow.get(query.group_id, 0))
        self.events.append(f"answered {query.group_id}")
        seeds = Seeds(self.config.seed).answers(ticket, self.config.answers)
        return tuple(completion(f"answer {seed}", begun, seed) for seed in seeds)

    async def score(self, ticket: Ticket, query: Query, answers: Sequence[Completion]) -> Scores:
        values = np.array([float(a.seed % 2) for a in answers])
        if query.group_id in self.flawed:
            values[0] = np.nan
        parsable = query.group_id not in self.unparsable
        verdicts = tuple(Verdict(a.seed % 8 if parsable else None, "verdict") for a in answers)
        return Scores({"solved": values}, verdicts)

    @contextlib.asynccontextmanager
    async def weights_move(self):
        self.moving = True
        yield
        self.moving = False

    async def publish(self, version: int) -> float:
        assert self.moving
        self.events.append(f"published {version}")
        self.version = version
        return 0.001


class Gate:
    """Admits what it has not seen and what is neither in `bad` nor in `unsafe`."""

    def __init__(self, bad: set[str] | None = None, unsafe: set[str] | None = None) -> None:
        self.bad = bad or set()
        self.unsafe = unsafe or set()
        self.classified_together: list[list[str]] = []

    async def classified(self, queries: Sequence[Query]) -> list[Safety]:
        self.classified_together.append([query.group_id for query in queries])
        return [Safety("drugs" if q.group_id in self.unsafe else None) for q in queries]

    async def check(self, query: Query, seen: set[str], safety: Safety | None) -> str | None:
        if query.group_id in self.bad:
            return "task_unreadable"
        if query.text in seen:
            return "duplicate"
        return f"unsafe_{safety.label}" if safety is not None and safety.label else None


@dataclass
class Outcome:
    """A step's outcome with advantages as the ledger's invariants want them."""

    rewards_solver: list[np.ndarray]
    rewards_challenger: np.ndarray
    applied: bool = True
    bad_groups: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=lambda: {"loss": 0.5})
    diversity: dict[str, float] = field(default_factory=lambda: {"novelty": 0.5})

    @property
    def advantages_solver(self) -> list[np.ndarray]:
        return [r_G - r_G.mean() if r_G.size else r_G for r_G in self.rewards_solver]

    @property
    def advantages_challenger(self) -> np.ndarray:
        trained = self.rewards_challenger[~np.isnan(self.rewards_challenger)]
        return self.rewards_challenger - (trained.mean() if trained.size else 0.0)


@dataclass
class Learner:
    """Keeps what it was given; `bad` maps the number of a call to its bad groups."""

    bad: dict[int, list[int]] = field(default_factory=dict)
    seconds: float = 0.0
    batches: list[list[Group]] = field(default_factory=list)
    calls: int = 0
    world: World | None = None

    async def step(self, groups: list[Group], iteration: int) -> Outcome:
        assert self.world is None or self.world.moving
        await asyncio.sleep(self.seconds)
        self.calls += 1
        outcome = outcome_of(groups)
        if self.calls - 1 in self.bad:
            return Outcome([], np.array([]), False, self.bad[self.calls - 1])
        self.batches.append(groups)
        return outcome


def outcome_of(groups: Sequence[Group]) -> Outcome:
    solver = [
        g.scores.parts["solved"] + np.array([v.score or 0 for v in g.scores.verdicts] or 0)
        if g.answers
        else np.zeros(0)
        for g in groups
    ]
    values = [-r.mean() for r in solver if r.size]
    challenger = [
        np.nan if g.query.completion is None else -r.mean() if r.size else min(values)
        for g, r in zip(groups, solver, strict=True)
    ]
    return Outcome(solver, np.array(challenger))


class MemoryLedger:
    """Keeps the rows' groups in memory."""

    def __init__(self) -> None:
        self.groups: dict[int, list[Group]] = {}
        self.rejected: dict[int, list[Rejected]] = {}

    def write(self, iteration, groups, rejected, outcome) -> None:
        assert iteration not in self.groups
        self.groups[iteration] = list(groups)
        self.rejected[iteration] = list(rejected)


def make_game(
    world: World,
    *,
    learner: Learner | None = None,
    gate: Gate | None = None,
    ledger: object = None,
    iteration: int = 0,
    pending: Pending | None = None,
) -> Game:
    """A game around a world."""
    config = world.config
    world.version = iteration
    return Game(
        config,
        source=ChallengerSource(world, gate or Gate(), config.challenger, Seeds(config.seed)),
        solver=world,
        scorers=[world],
        weights=world,
        learner=learner or Learner(),
        ledger=ledger or MemoryLedger(),  # pyright: ignore[reportArgumentType]
        iteration=iteration,
        pending=pending,
    )


async def play(game: Game, until: int | None = None) -> list:
    """Play to the end, or ask for a stop when iteration `until` is over."""
    records = []
    async with contextlib.aclosing(game.play()) as iterations:
        async for record in iterations:
            records.append(record)
            if until is not None and record.iteration + 1 >= until:
                game.stop.set()
    return records
