"""All DeepSpeed ranks as one learner, driven from the asyncio loop of the game.

Every wait on the ranks has a name and a deadline: where it passes, the error says which ranks
have not answered. Calls are made on all ranks at once and in one order, since they are
collectives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.placing import thread_environment
from actors.records import Group, TokenIds
from configs.base import Dtype
from configs.errors import UserError
from configs.learner import LearnerConfig
from configs.schema import RunConfig
from learner import assembly
from learner.actor import LearnerRank
from learner.advantages import Credit, Floats, RunningMoments, assign_credit
from learner.batching import split
from learner.checkpoint import Sizes, write_durably
from learner.errors import LearnerError
from learner.rank import RankReport
from rewards.memory import QueryMemory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

LOG = logging.getLogger(__name__)


Lacking = Callable[[LearnerConfig], str]
Limit = Literal["start_deadline_s", "step_deadline_s"]
"""The key of the configuration that bounds a wait."""
NEWS_S = 10.0
"""Ray knows so long after a process's death that it is dead."""
STATE_FILE = "learner.json"
EXPORT_GROUP_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class StepResult:
    """What one training step did to a batch of N groups.

    `applied` is False where the weights were left as they were: a loss or gradient was NaN or
    infinite, and `bad_groups` are the indices of the groups whose loss it was. Challenger values
    are NaN for queries out of a data set, and advantages for queries that are not trained (α = 0).
    """

    applied: bool
    metrics: dict[str, float]
    diversity: dict[str, float]
    rewards_solver: list[Floats]  # N arrays [G], empty where the query was rejected
    rewards_challenger: Floats  # [N]
    advantages_solver: list[Floats]  # N arrays [G]
    advantages_challenger: Floats  # [N]
    bad_groups: list[int]


class LearnerGroup:
    """The learner: `config.learner.ranks` Ray actors in a placement group of their own."""

    def __init__(self, config: RunConfig, model_path: str, lacking: Lacking | None = None) -> None:
        """`model_path` is the folder or hub id of the initial policy, which is the reference;
        `lacking` says why the ranks have no place."""
        self.config = config
        self.model_path = model_path
        self.steps = 0
        """Steps applied: what the weights are, whether published or not."""
        self.unplaced: str | None = None
        """What the ranks lack that have waited too long for a place, as a sentence."""
        self._lacking = lacking
        self._moments = RunningMoments()
        self._memory = QueryMemory(config.challenger.memory)
        self._ranks: list[ActorHandle] = []
        self._placement: PlacementGroup | None = None

    async def start(self) -> None:
        """Place the ranks, where they have no place yet, load the model and let them meet."""
        if self._placement is None:
            await self.place()
        address = await self._at_start(
            self._ranks[0].meeting_point.remote(), "the first learner rank's process to start"
        )
        refs = [rank.start.remote(i, address) for i, rank in enumerate(self._ranks)]
        await self._all(refs, "loading the model", "start_deadline_s")

    async def place(self) -> None:
        """Find a place for all ranks, and start their processes there."""
        learner = self.config.learner
        bundle = {"CPU": learner.cpus} | ({"GPU": learner.gpus} if learner.gpus else {})
        self._placement = placement_group(
            [bundle] * learner.ranks,
            strategy="PACK",
            bundle_label_selector=[learner.labels] * learner.ranks,
        )
        await self._placed(self._placement, f"a place for {learner.ranks} learner ranks")
        environment = {} if learner.gpus else {"DS_ACCELERATOR": "cpu"}
        environment |= thread_environment(learner.threads)
        actor: Any = ray.remote(LearnerRank)
        # Ranks work in directories of their own.
        config = self.config.model_copy(update={"run_dir": self.config.run_dir.absolute()})
        self._ranks = [
            actor.options(
                num_cpus=learner.cpus,
                num_gpus=learner.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement, i),
                runtime_env={"env_vars": environment},
            ).remote(config, self.model_path)
            for i in range(learner.ranks)
        ]

    async def step(self, groups: Sequence[Group], iteration: int) -> StepResult:
        """Train one gradient step on a batch of N groups; iterations count from 0.

        Raises ValueError where a reward is not finite.
        """
        raw = assembly.raw_rewards(groups, self.config)
        moments = assembly.moments_after(raw, self._moments)
        rewards = raw
        if self.config.rewards.standardise:
            rewards = [moments.standardise(reward_G) for reward_G in raw]
        places = assembly.slots(groups, self.config)
        alike = assembly.diversity(groups, self._memory, self.config)
        earned = assembly.outcomes(groups, rewards, self.config)
        earned = assembly.steered(earned, alike, self.config.challenger)
        kl = self.config.learner.kl
        if kl.place == "reward" and kl.coefficient > 0:
            estimates = await self._kl(places)
            earned = assembly.penalised(earned, places, estimates, kl.coefficient)
        tasks = assembly.tasks_of(groups, self.config)
        credit = assign_credit(earned, divide_by_std=self.config.learner.advantage_std, tasks=tasks)
        reports = await self._train(places, credit, iteration)
        if reports[0].applied:
            self._moments = moments
            self._memory = self._memory.updated([g.query.text for g in groups if g.answers])
            self.steps += 1
        metrics = reports[0].metrics | assembly.reward_metrics(raw, credit, tasks)
        metrics["padding_share"] = float(np.mean([r.metrics["padding_share"] for r in reports]))
        return _result(reports, metrics, alike.means(), credit, places)

    async def pack_weights(self, buffer_bytes: int, dtype: Dtype) -> list[ray.ObjectRef[Any]]:
        """Return references to packed buffers with all weights in `dtype`."""
        refs = [rank.pack.remote(buffer_bytes, dtype) for rank in self._ranks]
        return (await self._all(refs, "packing the weights"))[0]

    async def send_weights(
        self, version: int, members: Mapping[str, ActorHandle], backend: str
    ) -> None:
        """Send the weights to the members through vLLM's own transfer (nccl, ipc)."""
        refs = [r.send_weights.remote(version, members, backend) for r in self._ranks]
        await self._all(refs, f"sending version {version} through {backend}")

    async def checksums(self, names: Sequence[str], dtype: Dtype) -> dict[str, int]:
        """Return the CRC-32 of the named tensors as they are published in `dtype`."""
        refs = [rank.checksums.remote(names, dtype) for rank in self._ranks]
        return (await self._all(refs, "checksums"))[0]

    async def tensor_sizes(self) -> dict[str, int]:
        """Return the number of elements of each tensor by its Hugging Face name."""
        return (await self._all([self._ranks[0].tensor_sizes.remote()], "tensor sizes"))[0]

    async def probe(self, token_ids: TokenIds) -> npt.NDArray[np.float32]:
        """Return the log-probabilities [L − 1] of the tokens after the first, temperature 1."""
        refs = [rank.probe.remote(token_ids) for rank in self._ranks]
        return (await self._all(refs, "the parity probe"))[0]

    async def save(self, folder: Path) -> Sizes:
        """Write optimiser, weights, reward statistics and past queries into `folder`.

        Returns the files that the ranks see there, which may not be what this process sees.
        """
        folder.mkdir(exist_ok=True)
        seen = await self._all([rank.save.remote(folder) for rank in self._ranks], "saving")
        state = {
            **self._shape(),
            "steps": self.steps,
            "moments": self._moments.state_dict(),
            "memory": self._memory.state_dict(),
        }
        write_durably(folder / STATE_FILE, json.dumps(state))
        return {path: size for sizes in seen for path, size in sizes.items()}

    async def load(self, folder: Path) -> None:
        """Take up the state that `save` wrote; UserError where the ranks have changed.

        The caller has compared the checkpoint's files with its manifest (`learner.checkpoint`).
        """
        state = json.loads((folder / STATE_FILE).read_text())
        for key, now in self._shape().items():
            if state[key] != now:
                raise UserError(
                    f"checkpoint {folder} was written with learner.{key} {state[key]} and this run"
                    f" has {now}: put learner.{key}: {state[key]} back, or start a new run from"
                    " the checkpoint's hf folder as model.path"
                )
        await self._all([rank.load.remote(folder) for rank in self._ranks], "loading a checkpoint")
        self._moments = RunningMoments.from_state(state["moments"])
        capacity = self.config.challenger.memory
        self._memory = QueryMemory.from_state(state["memory"], capacity)
        self.steps = state["steps"]

    async def export(self, folder: Path) -> Sizes:
        """Write a Hugging Face checkpoint with its tokenizer into `folder`; see `save`."""
        refs = [rank.export.remote(folder, EXPORT_GROUP_BYTES) for rank in self._ranks]
        return (await self._all(refs, "exporting"))[0]

    async def describe(self) -> list[dict[str, Any]]:
        """Return process id, node and metrics address of each rank."""
        return await self._all([rank.describe.remote() for rank in self._ranks], "describing")

    def stop(self) -> None:
        """End the ranks and give their resources back. Can be called at any time, and twice."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    # --- one step ---

    async def _train(
        self, places: Sequence[assembly.Slot], credit: Credit, iteration: int
    ) -> list[RankReport]:
        rows = assembly.trained_rows(places, credit, self.config)
        batches = split(rows, len(self._ranks), self.config.learner.micro_batch_tokens)
        refs = [
            rank.step.remote(share, iteration)
            for rank, share in zip(self._ranks, batches, strict=True)
        ]
        return await self._all(refs, f"step {iteration}")

    async def _kl(self, places: Sequence[assembly.Slot]) -> dict[int, float]:
        rows = assembly.unscored_rows(places, self.config)
        batches = split(rows, len(self._ranks), self.config.learner.micro_batch_tokens)
        refs = [rank.kl.remote(share) for rank, share in zip(self._ranks, batches, strict=True)]
        estimates: dict[int, float] = {}
        for part in await self._all(refs, "KL of the rewards"):
            estimates |= part
        return estimates

    async def check(self, fault: BaseException) -> None:
        """Raise LearnerError where a rank is lost, so that `fault` may have come of it, or where it
        did come of that."""
        cause: BaseException | None = fault
        while cause is not None:
            if isinstance(cause, LearnerError):
                raise cause
            cause = cause.__cause__
        if not self._ranks:
            return
        futures = [asyncio.wrap_future(rank.describe.remote().future()) for rank in self._ranks]
        if lost := await _lost(futures):
            raise LearnerError(f"learner: ranks {lost} are lost: {fault}") from fault

    # --- ranks ---

    async def _placed(self, placement: PlacementGroup, what: str) -> None:
        """Await the ranks' places; where that takes long, say what is missing."""
        placing = asyncio.ensure_future(self._at_start(placement.ready(), what))
        try:
            await asyncio.wait({placing}, timeout=self.config.learner.placement_deadline_s)
            if not placing.done():
                self.unplaced = f"the learner has no place: {await self._lacks()}"
                LOG.warning("%s", self.unplaced)
            await placing
        except LearnerError as error:
            raise LearnerError("; ".join(filter(None, [str(error), self.unplaced]))) from error
        finally:
            placing.cancel()
            self.unplaced = None

    async def _lacks(self) -> str:
        unknown = "ray status says what is free"
        if self._lacking is None:
            return unknown
        try:
            return await asyncio.to_thread(self._lacking, self.config.learner)
        except RayError as error:  # the wait itself has a deadline
            return f"{unknown} ({error})"

    async def _at_start(self, ref: ray.ObjectRef[Any], what: str) -> Any:
        """Await something of the start."""
        deadline = self.config.learner.start_deadline_s
        try:
            with _explained(what):
                return await asyncio.wait_for(asyncio.wrap_future(ref.future()), deadline)
        except TimeoutError as e:
            raise LearnerError(
                f"learner: waited {deadline:.0f} s (learner.start_deadline_s) for {what}"
            ) from e

    async def _all(
        self, refs: Sequence[ray.ObjectRef[Any]], what: str, limit: Limit = "step_deadline_s"
    ) -> list[Any]:
        """Await all ranks; the first error ends the wait, since the others may hang on it."""
        deadline = getattr(self.config.learner, limit)
        LOG.debug("learner: awaiting %s on %d ranks", what, len(refs))
        futures = [asyncio.wrap_future(ref.future()) for ref in refs]
        try:
            with _explained(what):
                return await asyncio.wait_for(asyncio.gather(*futures), deadline)
        except (UserError, LearnerError):
            raise
        except TimeoutError as e:
            if any(f.done() and not f.cancelled() and f.exception() for f in futures):
                raise  # a rank's own, which waits for others
            done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
            silent = [rank for rank, ref in enumerate(refs) if ref not in done]
            raise LearnerError(
                f"learner: {what} took longer than learner.{limit} ({deadline:.0f} s);"
                f" ranks {silent} have not answered"
            ) from e
        except Exception as e:
            # What the others say when one dies under them comes before the news of its death.
            lost = await _lost(futures)
            if not lost:
                raise
            raise LearnerError(f"learner: {what}: ranks {lost} are lost: {e}") from e

    def _shape(self) -> dict[str, Any]:
        learner = self.config.learner
        return {"ranks": learner.ranks, "zero_stage": learner.zero_stage, "dtype": learner.dtype}


async def _lost(futures: Sequence[asyncio.Future[Any]]) -> list[int]:
    """The ranks, one call to each of them, of which there is news that they are dead."""
    done, _ = await asyncio.wait(futures, timeout=NEWS_S)
    return [rank for rank, future in enumerate(futures) if future in done and _is_loss(future)]


def _is_loss(future: asyncio.Future[Any]) -> bool:
    error = None if future.cancelled() else future.exception()
    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise a rank's own error, which may be a sentence for the user, or say that it is lost."""
    try:
        yield
    except RayTaskError as e:
        raise e.cause from e
    except RayError as e:
        raise LearnerError(f"learner: {what}: a rank is lost: {e}") from e


def _result(
    reports: Sequence[RankReport],
    metrics: dict[str, float],
    diversity: dict[str, float],
    credit: Credit,
    places: Sequence[assembly.Slot],
) -> StepResult:
    bad_rows = [row for report in reports for row in report.bad_rows]
    # At α = 0 queries are not trained, whatever their advantage would be.
    trained_N = np.zeros(len(credit.advantages_challenger), dtype=bool)
    trained_N[[slot.group for slot in places if slot.answer is None]] = True
    return StepResult(
        applied=reports[0].applied,
        metrics=metrics,
        diversity=diversity,
        rewards_solver=credit.rewards_solver,
        rewards_challenger=credit.rewards_challenger,
        advantages_solver=credit.advantages_solver,
        advantages_challenger=np.where(trained_N, credit.advantages_challenger, math.nan),
        bad_groups=sorted({places[row].group for row in bad_rows if row >= 0}),
    )
