"""The life of a run while its actors are up: resume, measure, play, save, measure, sum up."""

from __future__ import annotations

import contextlib
import json
import logging
import pkgutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from actors.telemetry import serve_metrics
from cluster.console import Console, summary_text
from cluster.faults import RunError
from cluster.game import Game, Pending
from cluster.ledger import Ledger
from cluster.metrics import Discovery, History, Target, observe, observe_fleet
from cluster.pending import load_pending, save_pending
from cluster.players import sampling_of
from cluster.record import IterationRecord
from cluster.rundir import model_identity
from cluster.wiring import Wired
from configs.errors import UserError
from configs.provenance import versions
from configs.schema import HeldoutConfig, RunConfig
from evaluation.heldout import Outcome, Problem, evaluate, normalised, summarise
from evaluation.report import write_report
from evaluation.run_files import read_history
from learner.checkpoint import CheckpointStore, read_state, write_durably

log = logging.getLogger(__name__)

LEARNER, EXPORT = "deepspeed", "hf"
"""Folders of a checkpoint."""


class Playing:
    """One life of a run. `seconds` is what its earlier phases took, `started` when it began."""

    def __init__(
        self, config: RunConfig, wired: Wired, seconds: dict[str, float], started: float
    ) -> None:
        self.config = config
        self.wired = wired
        self.seconds = seconds
        self.started = started
        self.run_dir = config.run_dir
        self.store = CheckpointStore(self.run_dir / "checkpoints", config.checkpoint.keep)
        self.ledger = Ledger(self.run_dir)
        self.game: Game | None = None
        self._saved: int | None = None
        self._closing: list[Any] = []

    def ask_to_stop(self) -> bool:
        """End after the step in hand; False where there is no game, or it was asked before."""
        if self.game is None or self.game.stop.is_set():
            return False
        self.game.stop.set()
        print("Stopping after this iteration, with a checkpoint; once more to stop at once.")
        return True

    async def play(self) -> None:
        """Play the run to its end, or until it is asked to stop."""
        self.game = await self._set_up()
        before = await self._measured("before")
        try:
            await self._iterate(self.game)
        except RunError:
            await self._save(self.game)
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

    # --- before the game ---

    async def _set_up(self) -> Game:
        """Start the actors with the weights of the last checkpoint; return the game from there."""
        iteration, pending, folder = self._last_checkpoint()
        for undone in self.ledger.undo_from(iteration):
            log.warning("iteration %d is played again; its rows are in games/undone", undone)
        print(_greeting(self.config, iteration))
        await self.wired.start()
        if folder is not None:
            await self.wired.learner.load(folder / LEARNER)
        async with self.wired.policy.weights_move():
            await self.wired.policy.publish(iteration)
        await self._serve_metrics()
        self.history = History(self.run_dir, iteration)
        self._closing.append(self.history)
        # What making the model took is not set-up.
        self.seconds["setup"] = time.perf_counter() - self.started - self.seconds["base_model"]
        print(f"  actors      {self._counts()}; ready after {self.seconds['setup']:.0f} s")
        return self.wired.game(self.config, self.ledger, iteration, pending)

    def _last_checkpoint(self) -> tuple[int, Pending, Path | None]:
        folder = self.store.latest()
        if folder is None:
            return 0, Pending(), None
        state = read_state(folder)
        if state.keys() != {"iteration", "version", "model"}:
            raise UserError(f"checkpoint {folder} is of another version of this program")
        if state["model"] != self._model():
            raise UserError(
                f"checkpoint {folder} was trained from another model than"
                f" {self.wired.model_path} is now: put that model back, or start a new run"
            )
        self._saved = state["iteration"]
        return state["iteration"], load_pending(folder), folder

    def _model(self) -> str:
        return model_identity(self.wired.model_path, self.config.model.revision)

    async def _serve_metrics(self) -> None:
        """Serve the driver's metrics, and the discovery of every process that serves some."""
        metrics = self.config.metrics
        driver = Target(serve_metrics(metrics.host), {"fleet": "driver"})
        ranks = [
            Target(rank["metrics_address"], {"fleet": "learner", "member": f"learner-{i}"})
            for i, rank in enumerate(await self.wired.learner.describe())
        ]
        discovery = Discovery(
            metrics.host,
            metrics.discovery_port,
            lambda: [driver, *ranks, *self._fleet_targets()],
        )
        self._closing.append(discovery)
        print(f"  metrics     {discovery.url}  (Prometheus HTTP service discovery)")

    def _fleet_targets(self) -> Iterator[Target]:
        for name, fleet in self.wired.fleets.items():
            for member in fleet.describe():
                if address := member.get("metrics_address"):
                    yield Target(address, {"fleet": name, "member": member["name"]})

    def _counts(self) -> str:
        counts = {name: len(fleet.serving()) for name, fleet in self.wired.fleets.items()}
        counts["learner"] = self.config.learner.ranks
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    # --- the game ---

    async def _iterate(self, game: Game) -> None:
        console = Console(self.config.iterations)
        async with contextlib.aclosing(game.play()) as records:
            async for record in records:
                self._note(record)
                for line in console.lines(record):
                    print(line, flush=True)
                if game.iteration % self.config.checkpoint.every == 0:
                    await self._save(game)

    def _note(self, record: IterationRecord) -> None:
        self.history.write(record)
        observe(record, self.config.iterations)
        for name, fleet in self.wired.fleets.items():
            observe_fleet(name, fleet.describe(), fleet.restarts)

    async def _save(self, game: Game) -> None:
        """Write a checkpoint, unless there is one of this iteration and nothing is pending."""
        pending = game.pending()
        if self._saved == game.iteration and not pending.groups:
            return
        with self.store.writing(game.iteration) as draft:
            await self.wired.learner.save(draft.folder / LEARNER)
            await self.wired.learner.export(draft.folder / EXPORT)
            save_pending(pending, draft.folder)
            draft.state = {
                "iteration": game.iteration,
                "version": game.iteration,
                "model": self._model(),
            }
        self._saved = game.iteration

    # --- held-out problems, and the end ---

    async def _measured(self, when: str) -> Outcome | None:
        """The greedy solve rate; measured once, also where the run is resumed."""
        heldout = self.config.heldout
        if heldout is None:
            return None
        path = self.run_dir / f"heldout-{when}.json"
        problems = _problems(heldout)
        if path.is_file():
            outcome = _read_outcome(path)
        else:
            outcome = await self._evaluate(problems, heldout)
            stored = {"answers": outcome.answers, "right": outcome.right_n.tolist()}
            write_durably(path, json.dumps(stored))
        print(f"  held-out    {100 * outcome.rate:.1f}% of {len(problems):,} solved {when}")
        return outcome

    async def _evaluate(self, problems: list[Problem], heldout: HeldoutConfig) -> Outcome:
        sampling = sampling_of(self.config.solver.sampling, logprobs=False)
        verify = pkgutil.resolve_name(heldout.verifier)
        policy = self.wired.policy
        return await evaluate(policy, problems, self.wired.prompts.solve, sampling, verify)

    async def _sum_up(self, before: Outcome | None) -> None:
        after = await self._measured("after")
        summary = self._summary(before, after)
        write_durably(self.run_dir / "summary.json", json.dumps(summary, indent=1))
        print(summary_text(summary, self.run_dir))

    def _summary(self, before: Outcome | None, after: Outcome | None) -> dict[str, Any]:
        config, history = self.config, read_history(self.run_dir)
        heldout = None
        if config.heldout is not None and before is not None and after is not None:
            named = config.heldout.identity
            identity = pkgutil.resolve_name(named) if named else normalised
            problems = _problems(config.heldout)
            heldout = summarise(problems, before, after, self._invented(), identity)
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


def _problems(heldout: HeldoutConfig) -> list[Problem]:
    make = pkgutil.resolve_name(heldout.problems)
    return [(problem.text, problem.family) for problem in make(heldout.n)]


def _read_outcome(path: Path) -> Outcome:
    stored = json.loads(path.read_text())
    return Outcome(tuple(stored["answers"]), np.array(stored["right"], dtype=bool))


def _greeting(config: RunConfig, iteration: int) -> str:
    begins = f"from iteration {iteration} on" if iteration else "from the start"
    return (
        f"{config.run_dir}: {config.algorithm}, {config.iterations} iterations of"
        f" {config.queries} queries × {config.answers} answers, seed {config.seed}, {begins}"
    )
