"""One run of the real game around simulated actors, what it came to, and whether it was right."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.gate import Gate
from actors.roles import CHALLENGER_PROMPT, CHALLENGER_SLOTS, PromptFile
from benchmarks import virtual_time
from benchmarks.simulated import (
    Crew,
    Failures,
    JudgeProcess,
    Process,
    RolloutProcess,
    Times,
    VerifierProcess,
)
from benchmarks.simulated_learner import Books, Learner, Publisher
from cluster.fleet import Fleet
from cluster.game import Game, Pending
from cluster.players import Challenger, PartScorer, Policy, QualityScorer, Solver, sampling_of
from cluster.record import IterationRecord
from cluster.seeds import Seeds, Ticket
from cluster.sources import ChallengerSource
from configs.fleets import FleetConfig
from configs.schema import RunConfig

ANSWERS = 8
PROMPT = np.zeros(64, dtype=np.int32)
PART = "solved"
UNLIMITED = 10**6


@dataclass(frozen=True)
class Line:
    """One simulated run, after its warm-up; times are virtual."""

    members: int
    staleness: int
    failures: bool
    iterations: int
    seconds: float
    groups_per_s: float
    tokens_per_s: float
    """Of the answers and queries that were generated and not lost with a member."""
    learner_idle: float
    """Share of the time without a training step in hand."""
    engines_idle: float
    """Share of the rollout engines' time with no sequence to decode."""
    engines_updating: float
    engines_down: float
    """Dead, hung or starting."""
    batch: float
    """Mean sequences of an engine that decodes."""
    staleness_mean: float
    """Versions between a group's oldest token and the step that trained it."""
    staleness_max: int
    staleness_at_end: float
    """Mean over the answers of the same from their last token on."""
    spanned: float
    """Share of the answers that more than one version wrote."""
    spanned_max: int
    """Most versions of one answer, besides its first."""
    died: int
    hung: int
    calls_redone: int
    """Calls of any fleet that failed with their member."""
    tokens_redone: float
    """Share of the rollout engines' tokens that were decoded for such calls."""


def make_config(times: Times, members: int, staleness: int, seed: int) -> RunConfig:
    """The configuration of a simulated run."""
    fleet = {"deadline_s": 180, "restarts": UNLIMITED}
    engines = fleet | {"max_sequences": times.rollout.sequences}
    judges = engines | {"replicas": math.ceil(members / 2)}
    verifiers = {"restarts": UNLIMITED, "replicas": math.ceil(members / 8)}
    part = {"kind": "verifier", "name": PART, "function": "benchmarks.length:length_reward"}
    return RunConfig.model_validate(
        {
            "algorithm": "lsp",
            "run_dir": "unused",
            "model": {"path": "unused"},
            "seed": seed,
            "iterations": UNLIMITED,
            "queries": members,
            "answers": ANSWERS,
            "staleness": staleness,
            "challenger": {"sampling": {"max_tokens": times.query.limit}},
            "solver": {"sampling": {"max_tokens": times.answer.limit}},
            "rollout": engines | {"replicas": members, "context": 2 * times.answer.limit},
            "rewards": {"parts": [part | {"fleet": verifiers}], "quality": {"fleet": judges}},
            "publish": {"deadline_s": 30},
        }
    )


class Simulation:
    """A run: real fleets, players and game around simulated processes.

    To be made inside a running loop of virtual time. `before` is a life of the same run that was
    stopped, whose ledger and learner this one has, and `pending` what its checkpoint holds.
    """

    def __init__(
        self,
        config: RunConfig,
        times: Times,
        failures: Failures | None,
        before: Simulation | None = None,
        pending: Pending | None = None,
    ) -> None:
        assert config.rewards.quality is not None
        self.config = config
        self.books = before.books if before else Books()
        self.learner = before.learner if before else Learner(config, times, config.rollout.replicas)
        self.publisher = Publisher(times, config.publish.deadline_s)
        self.crews: dict[str, Crew] = {}
        self.fleets: dict[str, Fleet] = {}
        kinds: dict[str, tuple[type[Process], FleetConfig]] = {
            "rollout": (RolloutProcess, config.rollout),
            "judge": (JudgeProcess, config.rewards.quality.fleet),
            "verifier": (VerifierProcess, config.rewards.parts[0].fleet),
        }
        for name, (kind, fleet) in kinds.items():
            crew = Crew(kind, times, config.seed, failures)
            catch_up = self.publisher.catch_up if name == "rollout" else None
            self.crews[name] = crew
            self.fleets[name] = Fleet(name, fleet, crew.spawn, catch_up, crew.kill, _has_place)
        self.game = self._game(before.game.iteration if before else 0, pending)

    def _game(self, iteration: int, pending: Pending | None) -> Game:
        config, seeds = self.config, Seeds(self.config.seed)
        policy = Policy(self.fleets["rollout"], self.publisher, colocated=False)
        challenger = Challenger(
            policy,
            lambda *_: PROMPT,
            sampling_of(config.challenger.sampling, logprobs=False),
            config.rollout.max_sequences,
            seeds,
            seeded=True,
        )
        gate = Gate(
            config.gate, PromptFile.load(CHALLENGER_PROMPT, CHALLENGER_SLOTS), lambda _: True
        )
        return Game(
            config,
            source=ChallengerSource(challenger, gate, config.challenger, seeds),
            solver=Solver(
                policy,
                lambda _: PROMPT,
                sampling_of(config.solver.sampling, logprobs=False),
                config.answers,
                seeds,
                seeded=True,
            ),
            scorers=[
                PartScorer(PART, self.fleets["verifier"]),
                QualityScorer(self.fleets["judge"], seeds),
            ],
            weights=policy,
            learner=self.learner,
            ledger=self.books,
            iteration=iteration,
            pending=pending,
        )

    async def play(self, warm_up: int, iterations: int) -> Line:
        """Play some iterations, then measure others; the pipeline stays full to the end."""
        await asyncio.gather(*(fleet.start() for fleet in self.fleets.values()))
        records: list[IterationRecord] = []
        marks: list[dict[str, float]] = []
        async with contextlib.aclosing(self.game.play()) as played:
            async for record in played:
                if len(records) in (warm_up - 1, warm_up + iterations - 1):
                    marks.append(self._mark())
                records.append(record)
                if len(records) == warm_up + iterations:
                    self.game.stop.set()
        await asyncio.gather(*(fleet.stop() for fleet in self.fleets.values()))
        used = {name: marks[1][name] - marks[0][name] for name in marks[1]}
        return self._line(records[warm_up:], used)

    def _mark(self) -> dict[str, float]:
        """Sums up to now; of two marks the difference counts."""
        used = [crew.used() for crew in self.crews.values()]
        whole = {name: sum(one[name] for one in used) for name in ("died", "hung", "calls_redone")}
        learner = {"now": asyncio.get_running_loop().time(), "learner_s": self.learner.busy_s}
        return self.crews["rollout"].used() | whole | learner

    def _line(self, records: Sequence[IterationRecord], used: dict[str, float]) -> Line:
        config, seconds = self.config, used["now"]
        engine_s = config.rollout.replicas * seconds
        up = used["idle_s"] + used["updating_s"] + used["decoding_s"]
        played = [(r.iteration, g) for r in records for g in self.books.iterations[r.iteration]]
        groups = [group for _, group in played]
        ages = [iteration - a.version_max for iteration, group in played for a in group.answers]
        spans = [a.version_max - a.version_min for group in groups for a in group.answers]
        return Line(
            members=config.rollout.replicas,
            staleness=config.staleness,
            failures=self.crews["rollout"].failures is not None,
            iterations=len(records),
            seconds=seconds,
            groups_per_s=len(groups) / seconds,
            tokens_per_s=sum(record.tokens_generated for record in records) / seconds,
            learner_idle=1 - used["learner_s"] / seconds,
            engines_idle=used["idle_s"] / engine_s,
            engines_updating=used["updating_s"] / engine_s,
            engines_down=max(0.0, 1 - up / engine_s),  # the clock's rounding may be below
            batch=used["sequence_s"] / used["decoding_s"],
            staleness_mean=statistics.fmean(record.staleness_mean for record in records),
            staleness_max=max(record.staleness_max for record in records),
            staleness_at_end=statistics.fmean(ages),
            spanned=statistics.fmean(span > 0 for span in spans),
            spanned_max=max(spans),
            died=round(used["died"]),
            hung=round(used["hung"]),
            calls_redone=round(used["calls_redone"]),
            tokens_redone=used["tokens_redone"] / used["tokens"],
        )


def simulate(
    members: int,
    staleness: int,
    iterations: int,
    *,
    failures: Failures | None = None,
    seed: int = 0,
) -> tuple[Line, Simulation]:
    """One line of the table, checked, and the simulation it came from."""
    times = Times()

    async def played() -> tuple[Line, Simulation]:
        simulation = Simulation(make_config(times, members, staleness, seed), times, failures)
        return await simulation.play(staleness + 1, iterations), simulation

    line, simulation = virtual_time.run(played())
    check(simulation)
    return line, simulation


def check(simulation: Simulation) -> None:
    """Raise RuntimeError where a group was lost, doubled, mixed up or passed over, or a sequence
    handed over twice."""
    config, seeds = simulation.config, Seeds(simulation.config.seed)
    times, played = simulation.learner.times, simulation.books.iterations
    trained = [[group.query.group_id for group in groups] for groups in played]
    _demand(trained == simulation.learner.batches, "what the ledger and the learner got")
    for iteration, groups in enumerate(played):
        tickets = [Ticket.parse(group.query.group_id) for group in groups]
        places = [(ticket.round, ticket.slot) for ticket in tickets]
        _demand(places == [(iteration, n) for n in range(config.queries)], f"slots of {iteration}")
        for place, ticket, group in zip(places, tickets, groups, strict=True):
            turned_away = simulation.books.rejected[place]
            _demand(ticket.attempt == turned_away, f"{ticket} is not the first that was admitted")
            drawn = seeds.answers(ticket, config.answers)
            _demand([a.seed for a in group.answers] == drawn, f"answers of {ticket}")
            lengths = [len(answer.token_ids) for answer in group.answers]
            _demand(lengths == [times.answer.of(seed) for seed in drawn], f"lengths of {ticket}")
    twice = [seed for seed, n in simulation.crews["rollout"].delivered.items() if n > 1]
    _demand(not twice, f"{len(twice)} sequences handed over twice")


def _has_place(*_: object) -> None:
    """Every simulated process has a place."""


def _demand(condition: bool, what: str) -> None:
    if not condition:
        raise RuntimeError(f"the simulated game is wrong: {what}")
