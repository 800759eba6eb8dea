"""The life of a run while its actors are up: resume, measure, play, save, measure, sum up."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.generator import Generator
from cluster.autoscaling import Autoscaler
from cluster.console import Console, summary_text
from cluster.control import Control
from cluster.faults import RunError
from cluster.game import Game, Pending
from cluster.guards import Alarm, Guards, figure, last_good
from cluster.heldout import HeldOut, Problems
from cluster.ledger import Ledger
from cluster.metrics import ALARMS, STOPPING, VERSION, History, begin, observe
from cluster.pending import load_pending, save_pending
from cluster.players import sampling_of
from cluster.record import IterationRecord
from cluster.rollback import RollBackError, rollbacks_of
from cluster.rundir import CHECKPOINTS, EXPORT
from cluster.scraping import Scraped
from cluster.sizes import checked_sizes
from cluster.status import Status, status_of
from cluster.trackers import Tracker
from cluster.wiring import Wired
from configs.errors import UserError
from configs.provenance import versions
from configs.schema import RunConfig
from evaluation.asking import Paced
from evaluation.heldout import Outcome
from evaluation.report import write_report
from evaluation.run_files import read_history
from learner.checkpoint import CheckpointStore, read_state, write_durably
from learner.errors import LearnerError

log = logging.getLogger(__name__)

LEARNER = "deepspeed"
"""The folder of the learner's state in a checkpoint."""


class Playing:
    """One life of a run.

    `model` is the identity of its initial model, `seconds` what its earlier phases took, `started`
    when it began.
    """

    def __init__(
        self,
        config: RunConfig,
        wired: Wired,
        model: str,
        seconds: dict[str, float],
        started: float,
        sizes: Mapping[str, int],
        trackers: Sequence[Tracker],
        scraped: Scraped,
    ) -> None:
        """`sizes` are those that fleets had in a life before, however they came to them;
        `trackers` are told of every iteration; `scraped` shows this life to Prometheus."""
        self.config = config
        self.wired = wired
        self.model = model
        self.seconds = seconds
        self.started = started
        self.sizes = sizes
        self.trackers = trackers
        self.scraped = scraped
        self.run_dir = config.run_dir
        # Absolute, since learner ranks write there too, from directories of their own.
        checkpoints = (self.run_dir / CHECKPOINTS).absolute()
        self.store = CheckpointStore(checkpoints, config.checkpoint.keep)
        self.ledger = Ledger(self.run_dir)
        self.heldout = HeldOut(config.heldout, self.run_dir) if config.heldout else None
        self.development = (
            Problems("development", config.development) if config.development else None
        )
        self.game: Game | None = None
        self.control = Control(
            self.run_dir, {"status": self._status, "scale": self._scale, "stop": self._stop}
        )
        self._last: IterationRecord | None = None
        self._saved: int | None = None
        self._doing = "its actors, which start"
        """What it waits for before its game, in words."""
        self._closing: list[Any] = []

    def ask_to_stop(self) -> bool:
        """End after the step in hand; False where there is no game, or it was asked before."""
        if self.game is None or self.game.stop.is_set():
            return False
        self.game.stop.set()
        STOPPING.set(1)
        print("Stopping after this iteration, with a checkpoint; once more to stop at once.")
        return True

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to end."""
        return self.game is not None and self.game.stop.is_set()

    @property
    def iteration(self) -> int:
        """Iterations trained."""
        return self.game.iteration if self.game is not None else 0

    def look_back(self) -> None:
        """Find the checkpoint to go on from; UserError where it does not fit this run."""
        self._begins = self._last_checkpoint()

    async def play(self) -> None:
        """Play the run to its end, or until it is asked to stop."""
        self.game = await self._set_up()
        before = await self._measured("before")
        try:
            await self._iterate(self.game)
        except RunError:
            try:
                await self._save(self.game)
            except (LearnerError, UserError, OSError) as error:
                # What ended the run comes first, whatever it has led to.
                log.warning("nothing could be saved: %s", error)
            raise
        await self._save(self.game)
        if self.game.iteration < self.config.iterations:
            print(
                f"Stopped at iteration {self.game.iteration} of {self.config.iterations};"
                f" selfplay resume {self.run_dir} continues."
            )
        else:
            await self._sum_up(before)
        self._report()

    def close(self) -> None:
        """Close files and ports."""
        for thing in self._closing:
            thing.close()

    # --- what others ask of the run ---

    async def _status(self) -> Status:
        game = self.game
        iteration = self._begins[0] if game is None else game.iteration
        awaited = self.wired.learner.unplaced or self._doing if game is None else game.awaited
        return status_of(
            self.config, iteration, awaited, self.wired.fleets, self._last, starting=game is None
        )

    async def _scale(self, sizes: dict[str, int]) -> Status:
        """Give fleets other sizes; none is changed where one of them is wrong."""
        fleets = self.wired.fleets
        sizes = checked_sizes(sizes, fleets, colocated=self.config.colocate)
        # The smallest first: a size that is refused is refused before anything is changed.
        for name in sorted(sizes, key=lambda name: sizes[name]):
            fleets[name].resize(sizes[name])
        return await self._status()

    async def _stop(self) -> None:
        if not self.ask_to_stop():
            raise UserError(f"{self.run_dir} is starting, or stopping already: wait for it")

    # --- before the game ---

    async def _set_up(self) -> Game:
        """Start the actors with the weights of the last checkpoint; return the game from there."""
        iteration, pending, folder = self._begins
        for undone in self.ledger.undo_from(iteration):
            log.warning("iteration %d is played again; its rows are in games/undone", undone)
        print(_greeting(self.config, iteration))
        begin(iteration, self.config.iterations)
        url = self.scraped.follow(self.wired.fleets)
        print(f"  metrics     {url}  (Prometheus HTTP service discovery)")
        await self.wired.start()
        self._doing = "the learner's state, and the first publish"
        if folder is not None:
            await self.wired.learner.load(folder / LEARNER)
        async with self.wired.policy.weights_move():
            await self.wired.policy.publish(iteration)
        VERSION.set(iteration)
        self.scraped.found(await self.wired.learner.describe())
        self.history = History(self.run_dir, iteration, self.trackers)
        self._closing.append(self.history)
        self.guards = Guards(self.config.guards, read_history(self.run_dir))
        fleets, staleness = self.wired.fleets, self.config.staleness
        self.autoscaler = Autoscaler(fleets, staleness, time.monotonic())
        for name, size in self.sizes.items():
            if fleets[name].target != size:
                fleets[name].resize(size)
        # What making the model took is not set-up.
        self.seconds["setup"] = time.perf_counter() - self.started - self.seconds["base_model"]
        print(f"  actors      {self._counts()}; ready after {self.seconds['setup']:.0f} s")
        return self.wired.game(self.config, self.ledger, iteration, pending)

    def _last_checkpoint(self) -> tuple[int, Pending, Path | None]:
        folder = self.store.latest()
        if folder is None:
            return 0, Pending(), None
        state = read_state(folder)
        if state.keys() != self._state(0).keys():
            raise UserError(f"checkpoint {folder} is of another version of this program")
        for key, now in self._state(state["iteration"]).items():
            if state[key] != now:
                raise UserError(
                    f"checkpoint {folder} was written with {key} {state[key]!r}, and this run has"
                    f" {now!r}: put that back, or start a new run"
                )
        self._saved = state["iteration"]
        return state["iteration"], load_pending(folder), folder

    def _state(self, iteration: int) -> dict[str, Any]:
        """What a checkpoint says of the run, and a run that goes on from it must agree with."""
        return {
            "iteration": iteration,
            "version": iteration,
            "model": self.model,
            "queries": self.config.queries,
            "answers": self.config.answers,
            "seed": self.config.seed,
            "staleness": self.config.staleness,
            "rewards": sorted(part.name for part in self.config.rewards.parts),
        }

    def _counts(self) -> str:
        counts = {name: len(fleet.serving()) for name, fleet in self.wired.fleets.items()}
        counts["learner"] = self.config.learner.ranks
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    # --- the game ---

    async def _iterate(self, game: Game) -> None:
        console = Console(self.config.iterations)
        async with contextlib.aclosing(game.play()) as records:
            async for record in records:
                record = await self._developed(record)
                alarms = self.guards.check(record.as_dict())
                self._note(record.with_alarms(alarms))
                for line in console.lines(record):
                    print(line, flush=True)
                await self._save_when_due(game, record)
                self._act(alarms)

    async def _developed(self, record: IterationRecord) -> IterationRecord:
        """The record with the solve rate of the development problems, where it is due."""
        config = self.config.development
        if config is None or self.development is None or (record.iteration + 1) % config.every:
            return record
        sampling = sampling_of(self.config.solver.sampling, logprobs=False)
        encode = self.wired.prompts.solve
        outcome = await self.development.outcome(self._examinee(), encode, sampling)
        return replace(record, development={"solved": outcome.rate})

    async def _save_when_due(self, game: Game, record: IterationRecord) -> None:
        """Write a checkpoint where one is due, or where this is the best so far."""
        due = game.iteration % self.config.checkpoint.every == 0
        named = self.config.checkpoint.best
        # Looked up in every iteration, so that a wrong name is noticed in the first.
        value = figure(record.as_dict(), named, "checkpoint.best") if named is not None else None
        measured = due or bool(record.development)
        better = value is not None and measured and self._is_best(value)
        if due or better:
            await self._save(game)
        if value is not None and better:
            self.store.mark_best(game.iteration, value)

    def _is_best(self, value: float) -> bool:
        marked = self.store.best()
        return marked is None or value > marked[1]

    def _act(self, alarms: Sequence[Alarm]) -> None:
        """Do what the guards ask for."""
        for alarm in alarms:
            ALARMS.labels(alarm.guard.metric, alarm.guard.action).inc()
            log.warning("guard: %s", alarm)
        for alarm in alarms:
            if alarm.guard.action == "stop":
                raise RunError(f"a guard has stopped the run: {alarm}")
            if alarm.guard.action == "rollback":
                done, limit = len(rollbacks_of(self.run_dir)), self.config.faults.rollbacks
                if done < limit:
                    raise RollBackError(alarm)
                raise RunError(f"{alarm}, after {done} rollbacks (faults.rollbacks {limit})")

    def _note(self, record: IterationRecord) -> None:
        self._last = record
        self.history.write(record)
        observe(record, self.config.iterations)
        for fleet in self.wired.fleets.values():
            fleet.note_progress()
        waiting_share = record.seconds["wait"] / record.seconds["iteration"]
        self.autoscaler.observe(time.monotonic(), waiting_share)

    async def _save(self, game: Game) -> None:
        """Write a checkpoint, unless there is one of this iteration and nothing is pending."""
        pending = game.pending()
        if self._saved == game.iteration and not pending.groups:
            return
        reaches = [
            last_good(began, self.config.staleness)
            for began in self.guards.rollback_began(game.iteration)
        ]
        with self.store.writing(game.iteration, reaches) as draft:
            draft.written |= await self.wired.learner.save(draft.folder / LEARNER)
            draft.written |= await self.wired.learner.export(draft.folder / EXPORT)
            save_pending(pending, draft.folder)
            draft.state = self._state(game.iteration)
        self._saved = game.iteration

    # --- held-out problems, and the end ---

    async def _measured(self, when: str) -> Outcome | None:
        if self.heldout is None:
            return None
        sampling = sampling_of(self.config.solver.sampling, logprobs=False)
        encode = self.wired.prompts.solve
        began = time.perf_counter()
        outcome = await self.heldout.measured(when, self._examinee(), encode, sampling)
        took = time.perf_counter() - began
        self.seconds["held_out"] = self.seconds.get("held_out", 0.0) + took
        return outcome

    def _examinee(self) -> Generator:
        """The policy, asked for no more at once than its engines decode."""
        policy = self.wired.policy
        return Paced(policy, self.config.rollout.max_sequences, policy.fleet.target)

    async def _sum_up(self, before: Outcome | None) -> None:
        after = await self._measured("after")
        summary = self._summary(before, after)
        write_durably(self.run_dir / "summary.json", json.dumps(summary, indent=1))
        print(summary_text(summary, self.run_dir))

    def _summary(self, before: Outcome | None, after: Outcome | None) -> dict[str, Any]:
        config, history = self.config, read_history(self.run_dir)
        heldout = None
        if self.heldout is not None and before is not None and after is not None:
            dataset = config.source.dataset
            heldout = self.heldout.summary(before, after, self._invented(), dataset)
        trained = sum(row["learner"]["tokens_trained"] for row in history)
        return {
            "algorithm": config.algorithm,
            "seed": config.seed,
            "iterations": config.iterations,
            "heldout": heldout,
            "wall_s": self.seconds | {"train": sum(r["seconds"]["iteration"] for r in history)},
            "tokens": {
                "generated": sum(row["tokens_generated"] for row in history),
                "trained": round(trained),
            },
            "versions": versions(),
        }

    def _invented(self) -> list[str]:
        """Texts of all queries of the Challenger that were trained on."""
        columns = ["role", "admitted", "text", "policy_version_min"]
        return [
            row["text"]
            for row in self.ledger.read(columns).to_pylist()
            # A data set's query stands in the Challenger's place, with version -1.
            if row["role"] == "challenger" and row["admitted"] and row["policy_version_min"] >= 0
        ]

    def _report(self) -> None:
        if read_history(self.run_dir):
            write_report(self.run_dir)


def _greeting(config: RunConfig, iteration: int) -> str:
    begins = f"from iteration {iteration} on" if iteration else "from the start"
    return (
        f"{config.run_dir}: {config.algorithm}, {config.iterations} iterations of"
        f" {config.queries} queries × {config.answers} answers, seed {config.seed}, {begins}"
    )
