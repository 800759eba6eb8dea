"""The parts of a run, made from its configuration: actors in fleets, the learner, the publisher.

Everything a run needs is made here and ended here: `Wired.start` brings the actors up side by
side, `Wired.stop` leaves no process behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Literal

from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.chat import ChatEncoder, load_tokenizer
from actors.classifier_actor import ClassifierActor
from actors.gate import Classify, Gate
from actors.member import Post
from actors.records import Query, TokenIds
from actors.roles import (
    CHALLENGER_PROMPT,
    CHALLENGER_SLOTS,
    PromptFile,
    challenger_prompt,
    solver_file,
    solver_prompt,
)
from actors.rollout import RolloutActor
from cluster.admission import CatchUp
from cluster.calls import all_or_none
from cluster.dataset import load_rows
from cluster.fleet import Fleet
from cluster.game import Game, GameLedger, Pending
from cluster.missing import lacking_ranks
from cluster.players import (
    Challenger,
    PartScorer,
    Policy,
    QualityScorer,
    Solver,
    sampling_of,
)
from cluster.reserving import actor_class
from cluster.round import Scorer
from cluster.seeds import Seeds
from cluster.sources import (
    ChallengerSource,
    DatasetSource,
    MixSource,
    QuerySource,
    rows_that_fit,
)
from configs.errors import UserError
from configs.rewards import PreferencePart, VerifierPart
from configs.schema import RunConfig
from learner.group import LearnerGroup
from learner.publisher import ObjectStorePublisher, VllmPublisher
from rewards.preference import PreferenceActor
from rewards.quality import QualityActor
from rewards.verifier_actor import VerifierActor

log = logging.getLogger(__name__)

Backend = Literal["nccl", "ipc", "object_store"]
PROBE_TEXT = "The same prompt, again and again: what follows it tells whose weights these are."


class Prompts:
    """Both roles' prompts in token ids, and the gate that knows how much room they leave."""

    def __init__(
        self, config: RunConfig, model_path: str, classify: Classify | None = None
    ) -> None:
        """Load the tokenizer and the prompts; `classify` is the gate's safety classifier."""
        model = config.model
        tokenizer = load_tokenizer(model_path, model.revision, model.trust_remote_code)
        self.config = config
        self.encoder = ChatEncoder(tokenizer, model.chat_date)
        self.challenger = PromptFile.load(
            config.challenger.prompt or CHALLENGER_PROMPT, CHALLENGER_SLOTS
        )
        solver = solver_file(config.solver.prompt)
        # The gate asks whether a query's prompt fits, and then the Solver takes it.
        self._solve = lru_cache(maxsize=config.queries)(
            lambda query_text: solver_prompt(self.encoder, query_text, config.solver.system, solver)
        )
        self.gate = Gate(config.gate, self.challenger, self._answer_fits, classify)
        self._check_room()

    def challenge(self, task: str, template: str) -> TokenIds:
        """The Challenger's prompt for a task and a template."""
        return challenger_prompt(self.encoder, self.challenger, task, template)

    def solve(self, query_text: str) -> TokenIds:
        """The Solver's prompt for a query."""
        return self._solve(query_text)

    @cached_property
    def probe(self) -> TokenIds:
        """A fixed sequence whose log-probabilities tell two sets of weights apart."""
        return self.solve(PROBE_TEXT)[: self.config.rollout.context - 1]

    def fits(self, query_text: str) -> bool:
        """Whether a query's prompt leaves room for the longest answer."""
        room = self.config.rollout.context - self.config.solver.sampling.max_tokens
        return len(self.solve(query_text)) <= room

    def _answer_fits(self, query: Query) -> bool:
        return self.fits(query.text)

    def _check_room(self) -> None:
        if self.config.source.kind == "dataset":
            return
        limit = self.config.rollout.context - self.config.challenger.sampling.max_tokens
        for task in self.config.challenger.tasks:
            length = len(self.challenge(task.task, task.template))
            if length > limit:
                raise UserError(
                    f"the challenger prompt for the task {task.task!r} takes {length} tokens and"
                    f" leaves no room for challenger.sampling.max_tokens"
                    f" {self.config.challenger.sampling.max_tokens} in rollout.context"
                    f" {self.config.rollout.context}: raise rollout.context"
                )
        sampling, context = self.config.solver.sampling, self.config.rollout.context
        if not all(self.fits(task.template) for task in self.config.challenger.tasks):
            raise UserError(
                f"solver.sampling.max_tokens {sampling.max_tokens} leaves no room for a query as"
                f" long as its template in rollout.context {context}: raise rollout.context or"
                " lower solver.sampling.max_tokens"
            )


@dataclass(frozen=True)
class Wired:
    """A run's actors and the game's players made of them."""

    model_path: str
    learner: LearnerGroup
    fleets: dict[str, Fleet]
    publisher: ObjectStorePublisher | VllmPublisher
    policy: Policy
    source: QuerySource
    solver: Solver
    scorers: Sequence[Scorer]
    prompts: Prompts

    async def start(self) -> None:
        """Start every actor at once; the first that cannot start ends the others.

        The learner has its place first: fleets play with fewer members, and without it nothing
        goes on. Those that share a GPU start one after the other, before the rest: an engine takes
        whatever else grows there while it starts for memory of its own.
        """
        await self.learner.place()
        fleets = self.fleets.values()
        for fleet in fleets:
            if fleet.config.shares_gpus:
                await fleet.start()
        others = [fleet.start() for fleet in fleets if not fleet.config.shares_gpus]
        await all_or_none([self.learner.start(), *others])

    async def stop(self) -> None:
        """End every actor, and the gate's process."""
        await asyncio.gather(
            *(fleet.stop() for fleet in self.fleets.values()),
            self.prompts.gate.close(),
            return_exceptions=True,
        )
        with contextlib.suppress(RayError):
            self.learner.stop()

    def game(
        self,
        config: RunConfig,
        ledger: GameLedger,
        iteration: int = 0,
        pending: Pending | None = None,
    ) -> Game:
        """The game that these parts play, from `iteration` on."""
        return Game(
            config,
            source=self.source,
            solver=self.solver,
            scorers=self.scorers,
            weights=self.policy,
            learner=self.learner,
            ledger=ledger,
            iteration=iteration,
            pending=pending,
        )


def wire(config: RunConfig, model_path: str) -> Wired:
    """Make every part of a run; no actor exists before `Wired.start`."""
    safety = _safety_fleet(config)
    classify = None if safety is None else partial(safety.call, "classify")
    prompts = Prompts(config, model_path, classify)
    seeds = Seeds(config.seed)
    backend = backend_of(config)
    learner = LearnerGroup(config, model_path, lacking_ranks)
    publisher = _publisher(config, learner, backend, prompts.probe)
    fleets = _fleets(config, model_path, backend, publisher.catch_up)
    if safety is not None:
        fleets["safety"] = safety
    policy = Policy(fleets["rollout"], publisher, colocated=config.colocate)
    stale = config.staleness > 0
    solver = Solver(
        policy,
        prompts.solve,
        sampling_of(config.solver.sampling, logprobs=stale),
        config.answers,
        seeds,
        config.rollout.seeded,
    )
    source = _source(config, policy, prompts, seeds)
    scorers = _scorers(config, fleets, seeds)
    return Wired(model_path, learner, fleets, publisher, policy, source, solver, scorers, prompts)


def backend_of(config: RunConfig) -> Backend:
    """How weights travel: as configured, or by where the learner and the engines stand."""
    if config.publish.backend != "auto":
        return config.publish.backend
    if config.rollout.gpus == 0:
        return "object_store"
    return "ipc" if config.colocate else "nccl"


def _publisher(
    config: RunConfig, learner: LearnerGroup, backend: Backend, probe: TokenIds
) -> ObjectStorePublisher | VllmPublisher:
    dtype = config.rollout.dtype
    if backend == "object_store":
        return ObjectStorePublisher(learner, config.publish, dtype, probe)
    return VllmPublisher(learner, config.publish, dtype, probe, backend)


def _post(config: RunConfig, name: str) -> Post:
    return Post(name, config.metrics.host, config.run_dir.absolute())


def _fleets(
    config: RunConfig, model_path: str, backend: Backend, catch_up: CatchUp
) -> dict[str, Fleet]:
    model = config.model
    at = partial(_post, config)

    def rollout(name: str) -> ActorHandle:
        return actor_class(RolloutActor, config.rollout).remote(
            model_path,
            config.rollout,
            post=at(name),
            transfer_backend=backend,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            colocated=config.colocate,
        )

    fleets = {"rollout": Fleet("rollout", config.rollout, rollout, catch_up)}
    quality = config.rewards.quality
    if quality is not None:

        def judge(name: str) -> ActorHandle:
            return actor_class(QualityActor, quality.fleet).remote(
                model_path,
                quality,
                post=at(name),
                chat_date=model.chat_date,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
            )

        fleets["judge"] = Fleet("judge", quality.fleet, judge)
    for part in config.rewards.parts:
        name = f"reward_{part.name}"
        fleets[name] = Fleet(name, part.fleet, _part_spawner(config, part))
    return fleets


def _safety_fleet(config: RunConfig) -> Fleet | None:
    safety = config.gate.safety
    if safety is None:
        return None

    def spawn(name: str) -> ActorHandle:
        return actor_class(ClassifierActor, safety.fleet).remote(safety, post=_post(config, name))

    return Fleet("safety", safety.fleet, spawn)


def _part_spawner(
    config: RunConfig, part: PreferencePart | VerifierPart
) -> Callable[[str], ActorHandle]:
    def spawn(name: str) -> ActorHandle:
        post = _post(config, name)
        if isinstance(part, VerifierPart):
            return actor_class(VerifierActor, part.fleet).remote(part, post=post)
        return actor_class(PreferenceActor, part.fleet).remote(
            part, post=post, chat_date=config.model.chat_date
        )

    return spawn


def _source(config: RunConfig, policy: Policy, prompts: Prompts, seeds: Seeds) -> QuerySource:
    kind = config.source.kind
    if kind == "dataset":
        return _dataset(config, prompts, seeds, config.queries)
    challenger = Challenger(
        policy,
        prompts.challenge,
        sampling_of(config.challenger.sampling, logprobs=config.staleness > 0),
        config.rollout.max_sequences,
        seeds,
        config.rollout.seeded,
    )
    source = ChallengerSource(challenger, prompts.gate, config.challenger, seeds)
    if kind == "challenger":
        return source
    share = config.queries * config.source.dataset_share
    return MixSource(_dataset(config, prompts, seeds, share), source)


def _dataset(config: RunConfig, prompts: Prompts, seeds: Seeds, per_round: float) -> DatasetSource:
    assert config.source.dataset is not None, "checked by configs.checks"
    rows, left_out = rows_that_fit(
        load_rows(config.source.dataset), lambda row: prompts.fits(row.query)
    )
    if left_out:
        log.warning("source.dataset: %d rows leave no room for an answer, left out", left_out)
    return DatasetSource(rows, per_round, seeds)


def _scorers(config: RunConfig, fleets: dict[str, Fleet], seeds: Seeds) -> list[Scorer]:
    scorers: list[Scorer] = [
        PartScorer(part.name, fleets[f"reward_{part.name}"]) for part in config.rewards.parts
    ]
    if config.rewards.quality is not None:
        scorers.append(QualityScorer(fleets["judge"], seeds))
    return scorers
