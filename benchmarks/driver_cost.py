"""What the driver itself costs: the real game with actors that answer at once.

CPU seconds of the driver's process per group, over a fleet of many members. Real are the game, the
fleets, the source, the gate, both roles' prompts with a real tokenizer, the records, the
advantages, the learner's micro-batches and the ledger on disk. A remote call is a future that the
next turn of the event loop resolves with a result made before. Not in it: what Ray costs for each
call (serialisation, its threads), and the publisher's calls to every member.

`cpu_s_per_group` is measured with nothing but a clock around the parts that are one call each;
`game` is the rest: game, rounds, fleets, source, gate, records, asyncio, and the stand-ins
themselves. `shares` is where a profiler sees that rest go; it makes calls dear, and so leans
towards code of many small ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import pstats
import statistics
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from ray.actor import ActorHandle

from actors.records import Completion, GenerationRequest, Group, Verdict
from benchmarks import measure
from benchmarks.simulated_learner import Outcome, credit_of
from cluster.fleet import Fleet
from cluster.game import Game
from cluster.ledger import Ledger
from cluster.players import Challenger, PartScorer, Policy, QualityScorer, Solver, sampling_of
from cluster.seeds import Seeds
from cluster.sources import ChallengerSource
from cluster.wiring import Prompts
from configs.schema import RunConfig
from learner import assembly
from learner.batching import split
from learner.publisher import PublishReport
from playground.tokenizer import make_tokenizer

P = ParamSpec("P")
T = TypeVar("T")

ANSWERS = 8
ANSWER_TOKENS = (100, 1000)
LINE = "First we compare the two numbers, then we write down which of them is the larger one.\n"
LINE_TOKENS = 20
QUERY = "Which of these numbers is the largest, and by how much does it exceed the others: "
PREPARED = 64
"""Different groups of answers, which the calls take by turns."""
CASES = ((8, 1024), (1024, 256), (1024, 1024), (1024, 4096))
"""Members of the rollout fleet, and queries of an iteration; the last is looked into."""
WARM_UP, ITERATIONS = 1, 3
LEAST_SHARE = 0.01
ROOT = Path(__file__).parents[1]
PACKAGES = Path(sysconfig.get_paths()["purelib"])


@dataclass(frozen=True)
class Cost:
    """CPU seconds per group by part, and wall seconds per group; a sample per iteration."""

    parts: list[dict[str, float]]
    wall: list[float]

    def figures(self) -> dict[str, Any]:
        """Medians, and the groups per second that they come to."""
        cpu = [sum(one.values()) for one in self.parts]
        return {
            "cpu_s_per_group": measure.figure(cpu, "s"),
            "parts": {n: statistics.median(one[n] for one in self.parts) for n in self.parts[0]},
            "groups_per_cpu_s": measure.figure([1 / one for one in cpu], "groups/s"),
            "groups_per_wall_s": measure.figure([1 / one for one in self.wall], "groups/s"),
        }


class Meter:
    """CPU seconds spent in named functions, on whatever thread."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """The function with its time taken."""

        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[name] += time.thread_time() - started

        return run


class StandIns:
    """Members of all fleets: each call's result is there at the next turn of the event loop."""

    def __init__(self, answers: int) -> None:
        generator = np.random.default_rng(0)
        lengths = generator.integers(*ANSWER_TOKENS, (PREPARED, answers))
        self.groups = [[_answer(int(length)) for length in group] for group in lengths]
        self.scores = generator.integers(0, 2, answers).astype(np.float64)
        self.verdicts = tuple(Verdict(i % 8, "SCORE: 1") for i in range(answers))
        self.version = 0

    def spawn(self, name: str) -> ActorHandle:
        """A member of the fleet that its name begins with."""
        score = self.judge if name.startswith("judge") else self.verify
        works = {"generate": self.generate, "score": score, "describe": dict, "stop": dict}
        remotes = {name: SimpleNamespace(remote=_remote(work)) for name, work in works.items()}
        return cast(ActorHandle, SimpleNamespace(**remotes))

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Answers made before, or queries, which have to differ."""
        seeds = [cast(int, request.seed) for request in requests]
        if requests[0].sampling.stop:
            return [_query(seed, self.version) for seed in seeds]
        return self.groups[seeds[0] % PREPARED]

    def judge(self, *_: object) -> tuple[Verdict, ...]:
        """Verdicts."""
        return self.verdicts

    def verify(self, *_: object) -> Any:
        """Scores [G]."""
        return self.scores

    async def publish(self, version: int, members: Mapping[str, ActorHandle]) -> PublishReport:
        """Everything is of this version from now on."""
        self.version = version
        self.groups = [
            [replace(answer, version_min=version, version_max=version) for answer in group]
            for group in self.groups
        ]
        return PublishReport(version, 0.0, 0, dict.fromkeys(members, 0.0), 0)


class Learner:
    """Trains nothing; what the driver does for a step is the learner's own."""

    def __init__(
        self, batches: Callable[[Sequence[Group], RunConfig], Outcome], config: RunConfig
    ) -> None:
        self.batches = batches
        self.config = config

    async def step(self, groups: list[Group], iteration: int) -> Outcome:
        """Get a batch ready, and leave it."""
        del iteration
        return self.batches(groups, self.config)


def make_config(members: int, queries: int, iterations: int) -> RunConfig:
    """A run at staleness 0, over fleets of these sizes, with the default prompts."""
    scorers = {"replicas": max(1, members // 8)}
    part = {"kind": "verifier", "name": "solved", "function": "benchmarks.length:length_reward"}
    return RunConfig.model_validate(
        {
            "algorithm": "lsp",
            "run_dir": "unused",
            "model": {"path": "unused"},
            "iterations": iterations,
            "queries": queries,
            "answers": ANSWERS,
            "staleness": 0,
            # By the stop text the stand-ins tell the roles apart.
            "challenger": {"sampling": {"stop": ["[END]"]}},
            "learner": {"ranks": 8},
            "rollout": {"replicas": members, "context": 8192},
            "rewards": {"parts": [part | {"fleet": scorers}], "quality": {"fleet": scorers}},
        }
    )


def measured() -> dict[str, Any]:
    """The driver's cost over small and large fleets and batches, and where it goes; printed."""
    cases = []
    for members, queries in CASES:
        figures = cost(members, queries, ITERATIONS).figures()
        cases.append({"members": members, "queries": queries, **figures})
        per_s = figures["groups_per_cpu_s"]["median"], figures["groups_per_wall_s"]["median"]
        parts = ", ".join(f"{name} {1e6 * s:.0f}" for name, s in figures["parts"].items())
        print(
            f"driver, {members} members, batches of {queries}: {per_s[0]:.0f} groups per CPU second"
            f" ({per_s[1]:.0f} per second of wall time); microseconds per group: {parts}"
        )
    found = profiled(*CASES[-1])
    print("the game's own time by module: " + ", ".join(f"{n} {s:.1%}" for n, s in found.items()))
    return {"cases": cases, "shares": found}


def cost(members: int, queries: int, iterations: int) -> Cost:
    """Play some iterations after a warm-up, and take the time of each."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_played(make_config(members, queries, WARM_UP + iterations), folder))


def profiled(members: int, queries: int) -> dict[str, float]:
    """The share of the CPU time of each module where it is more than a hundredth."""
    profile = cProfile.Profile(time.thread_time)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_played(make_config(members, queries, WARM_UP + 1), folder, profile))
    return {name: share for name, share in shares(profile).items() if share > LEAST_SHARE}


async def _played(config: RunConfig, folder: str, profile: cProfile.Profile | None = None) -> Cost:
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = config.rollout.context
    tokenizer.save_pretrained(folder)
    meter, standins = Meter(), StandIns(config.answers)
    fleets = {
        name: Fleet(name, fleet, standins.spawn, kill=lambda _: None, lacking=lambda *_: None)
        for name, fleet in config.fleets.items()
    }
    await asyncio.gather(*(fleet.start() for fleet in fleets.values()))
    game = _game(config, fleets, standins, meter, Path(folder))
    parts, wall = [], []
    before, started = time.process_time(), time.perf_counter()
    if profile is not None:
        profile.enable()
    async with contextlib.aclosing(game.play()) as records:
        async for _ in records:
            spent, meter.spent = meter.spent, defaultdict(float)
            spent["game"] = time.process_time() - before - sum(spent.values())
            parts.append({name: seconds / config.queries for name, seconds in spent.items()})
            wall.append((time.perf_counter() - started) / config.queries)
            before, started = time.process_time(), time.perf_counter()
    if profile is not None:
        profile.disable()
    await asyncio.gather(*(fleet.stop() for fleet in fleets.values()))
    return Cost(parts[WARM_UP:], wall[WARM_UP:])


def _game(
    config: RunConfig, fleets: dict[str, Fleet], standins: StandIns, meter: Meter, folder: Path
) -> Game:
    seeds, prompts = Seeds(config.seed), Prompts(config, str(folder))
    policy = Policy(fleets["rollout"], standins, colocated=False)
    challenger = Challenger(
        policy,
        meter.timed("challenger prompts", prompts.challenge),
        sampling_of(config.challenger.sampling, logprobs=True),
        config.rollout.max_sequences,
        seeds,
        seeded=True,
    )
    solver = Solver(
        policy,
        meter.timed("solver prompts", prompts.solve),
        sampling_of(config.solver.sampling, logprobs=True),
        config.answers,
        seeds,
        seeded=True,
    )
    ledger = Ledger(folder)
    timed_ledger = SimpleNamespace(write=meter.timed("ledger", ledger.write))
    return Game(
        config,
        source=ChallengerSource(challenger, prompts.gate, config.challenger, seeds),
        solver=solver,
        scorers=[
            PartScorer("solved", fleets["reward_solved"]),
            QualityScorer(fleets["judge"], seeds),
        ],
        weights=policy,
        learner=Learner(meter.timed("batches", _batches), config),
        ledger=cast(Ledger, timed_ledger),
    )


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """Each module's share of the time, the biggest first; a function in C counts where it is called
    from."""
    spent: defaultdict[str, float] = defaultdict(float)
    # Any: `stats` is in no stub. (file, line, name) -> calls, calls, own time, whole time, callers.
    table: Any = cast(Any, pstats.Stats(profile)).stats
    for (file, *_), (_, _, own, _, callers) in table.items():
        if file != "~":
            spent[_owner(file)] += own
            continue
        for (caller, *_), (_, _, there, _) in callers.items():
            spent[_owner(caller)] += there
            own -= there
        spent["python"] += own
    whole = sum(spent.values())
    return {name: spent[name] / whole for name in sorted(spent, key=lambda name: -spent[name])}


def _owner(file: str) -> str:
    """A module of ours or of asyncio, or else a library."""
    path = Path(file)
    if path.is_relative_to(PACKAGES):
        return path.relative_to(PACKAGES).parts[0]
    if path.is_relative_to(ROOT):
        return ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return "asyncio" if path.parent.name == "asyncio" else "python"


def _batches(groups: Sequence[Group], config: RunConfig) -> Outcome:
    """Rewards, advantages and the micro-batches of each rank, as `learner.group` makes them."""
    credit = credit_of(groups, config)
    rows = assembly.trained_rows(assembly.slots(groups, config), credit, config)
    split(rows, config.learner.ranks, config.learner.micro_batch_tokens)
    return Outcome.of(credit)


def _remote(work: Callable[..., Any]) -> Callable[..., asyncio.Future[Any]]:
    def remote(*args: Any) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(_resolve, future, work(*args))
        return future

    return remote


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _answer(length: int) -> Completion:
    ids, logprobs = np.arange(length, dtype=np.int32), np.zeros(length, dtype=np.float32)
    text = LINE * (length // LINE_TOKENS)
    return Completion(ids[:64], ids, text, "stop", 0, 0, 0, logprobs)


def _query(seed: int, version: int) -> Completion:
    ids, logprobs = np.arange(64, dtype=np.int32), np.zeros(64, dtype=np.float32)
    return Completion(ids, ids, f"{QUERY} {seed}", "stop", version, version, seed, logprobs)
