"""New weights to every rollout engine, and the proof that each engine serves them.

Invariant: `publish` and `catch_up` return only when each engine they touched has reported the
version, has the learner's exact bytes in the tensors that can be compared, and computes the
learner's log-probabilities of a fixed prompt. Checksums see a single stale version, which the
probe cannot at a small learning rate; the probe sees a broken layer, which a checksum may not.
A mismatch raises `StaleWeightsError`: silently stale weights are the worst fault there is.

A member that dies or falls silent while it is being served is left out and named in what they
return: its fleet restarts it, and the new one catches up before it plays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import ray
from prometheus_client import Counter, Histogram
from ray.exceptions import OwnerDiedError, RayTaskError

from actors.member import LOST
from actors.records import TokenIds
from configs.base import Dtype
from configs.learner import PublishConfig
from learner.errors import LearnerError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

LOG = logging.getLogger(__name__)
MIB = 1 << 20

PUBLISH_SECONDS = Histogram(
    "selfplay_learner_publish_seconds",
    "Wall time of one publish to all engines, verification included",
    buckets=(0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300),
)
PUBLISHED_BYTES = Counter("selfplay_learner_published_bytes", "Bytes of weights made public")


LOST_OR_SILENT = (*LOST, TimeoutError)
"""What a call on a member raises that is dead, alive without its engine, or silent."""


class StaleWeightsError(RuntimeError):
    """An engine does not serve the weights it was sent; the message has both values."""


@dataclass(frozen=True)
class PublishReport:
    """What a publish did. `parity` is the mean |Δ log-probability| of the probe per member;
    `lost` says of each member that died or fell silent on the way what became of it. `bytes` is the
    size of one copy of the weights."""

    version: int
    seconds: float
    bytes: int
    parity: dict[str, float]
    compared_tensors: int
    lost: dict[str, str] = field(default_factory=dict)


class Weights(Protocol):
    """What a publisher needs of the learner (`LearnerGroup` is one)."""

    async def pack_weights(self, buffer_bytes: int, dtype: Dtype) -> list[ray.ObjectRef[Any]]:
        """Return references to packed buffers."""
        ...

    async def checksums(self, names: Sequence[str], dtype: Dtype) -> dict[str, int]:
        """Return checksums of tensors as published."""
        ...

    async def tensor_sizes(self) -> dict[str, int]:
        """Return the number of elements by tensor."""
        ...

    async def probe(self, token_ids: TokenIds) -> npt.NDArray[np.float32]:
        """Return the log-probabilities [L − 1] of a fixed sequence."""
        ...


@dataclass(frozen=True, eq=False)
class Expected:
    """What an engine with the right weights answers."""

    version: int
    checksums: dict[str, int]
    logprobs: npt.NDArray[np.float32]


class Verifier:
    """Compares what an engine serves with what the learner holds."""

    def __init__(
        self, learner: Weights, config: PublishConfig, dtype: Dtype, probe: TokenIds
    ) -> None:
        """`probe` is the fixed prompt (two tokens or more), `dtype` that of the engines."""
        if len(probe) < 2:
            raise ValueError("the parity probe needs at least two tokens")
        self._learner = learner
        self._config = config
        self._dtype: Dtype = dtype
        self._probe = probe
        self._names: list[str] | None = None

    async def expect(self, version: int, members: Mapping[str, ActorHandle]) -> Expected:
        """Ask the learner for the right answers; a member shows which tensors can be compared."""
        for name, member in members.items():
            if self._names is None:
                with contextlib.suppress(*LOST_OR_SILENT):  # then another shows it
                    self._names = await self._comparable(name, member)
        names = self._names or []
        checksums = await self._learner.checksums(names, self._dtype) if names else {}
        return Expected(version, checksums, await self._learner.probe(self._probe))

    async def verify(self, name: str, member: ActorHandle, expected: Expected) -> float:
        """Return the mean |Δ log-probability| of the probe; raise StaleWeightsError if wrong."""
        version = await self.version_of(name, member)
        if version != expected.version:
            raise StaleWeightsError(
                f"{name} reports policy version {version} after version {expected.version}"
                " was published"
            )
        await self._compare_checksums(name, member, expected)
        logprobs = await self.await_member(
            name, "the parity probe", member.probe.remote(self._probe)
        )
        return self._compare_probe(name, logprobs, expected)

    async def version_of(self, name: str, member: ActorHandle) -> int:
        """Ask a member which version it serves."""
        return await self.await_member(name, "its version", member.version.remote())

    async def await_member(self, name: str, what: str, ref: Any) -> Any:
        """Await a call on a member; TimeoutError names the member and what it was asked."""
        deadline = self._config.deadline_s
        try:
            return await asyncio.wait_for(asyncio.wrap_future(ref.future()), deadline)
        except RayTaskError as e:
            # The member's own error, which may be that its engine has died.
            raise e.cause from e
        except TimeoutError as e:
            raise TimeoutError(
                f"publish: {name} has not answered for {deadline:.0f} s (publish.deadline_s);"
                f" awaited {what}"
            ) from e

    async def _compare_checksums(self, name: str, member: ActorHandle, expected: Expected) -> None:
        if not expected.checksums:
            return
        served = await self.await_member(
            name, "checksums", member.checksums.remote(list(expected.checksums))
        )
        for tensor, right in expected.checksums.items():
            if served.get(tensor) != right:
                raise StaleWeightsError(
                    f"{name}, version {expected.version}: tensor {tensor} has checksum"
                    f" {served.get(tensor)}, the learner's has {right}"
                )

    def _compare_probe(
        self, name: str, served: npt.NDArray[np.float32], expected: Expected
    ) -> float:
        difference = float(np.abs(served - expected.logprobs).mean())
        # A NaN must fail too.
        if not difference <= self._config.parity_tolerance:
            raise StaleWeightsError(
                f"{name}, version {expected.version}: log-probabilities of the probe differ from"
                f" the learner's by {difference:.4f} nats per token (publish.parity_tolerance"
                f" {self._config.parity_tolerance}); mean {served.mean():.4f} served,"
                f" {expected.logprobs.mean():.4f} learnt"
            )
        return difference

    async def _comparable(self, name: str, member: ActorHandle) -> list[str]:
        """Return the largest tensors that an engine can report, `publish.checksum_tensors` many.

        The largest, since at a small learning rate a small bfloat16 tensor may stay as it was.
        """
        sizes = await self._learner.tensor_sizes()
        ordered = sorted(sizes, key=lambda tensor: (-sizes[tensor], tensor))
        wanted, found = self._config.checksum_tensors, []
        for i in range(0, len(ordered), max(wanted, 1)):
            if len(found) >= wanted:
                break
            asked = ordered[i : i + wanted]
            reported = await self.await_member(name, "checksums", member.checksums.remote(asked))
            found += [tensor for tensor in asked if tensor in reported]
        return found[:wanted]


class ObjectStorePublisher:
    """Packed buffers through Ray's object store, as rollout engines on CPU take them.

    The buffers of the latest version are kept, so that a newcomer catches up without the learner.
    The caller lets no member catch up between a training step and the end of its publish
    (`cluster.fleet.Fleet.weights`), or the newcomer would hold what has no version yet.
    """

    def __init__(
        self, learner: Weights, config: PublishConfig, dtype: Dtype, probe: TokenIds
    ) -> None:
        """See `Verifier`."""
        self._learner = learner
        self._config = config
        self._dtype: Dtype = dtype
        self._verifier = Verifier(learner, config, dtype, probe)
        self._buffers: list[ray.ObjectRef[Any]] = []
        self._expected: Expected | None = None

    async def publish(self, version: int, members: Mapping[str, ActorHandle]) -> PublishReport:
        """Bring the learner's present weights, as `version`, to all members, and verify them."""
        started = time.perf_counter()
        buffer_bytes = self._config.buffer_mib * MIB
        self._buffers = await self._learner.pack_weights(buffer_bytes, self._dtype)
        expected = await self._verifier.expect(version, members)
        self._expected = expected
        parity, lost = await on_each(members, lambda n, m: self._serve(n, m, expected))
        return await _reported(self._learner, self._dtype, expected, parity, lost, started)

    async def catch_up(self, members: Mapping[str, ActorHandle]) -> dict[str, str]:
        """Bring members to the version published last and verify them; return who is lost, and why.

        Before the first publish, the model on disk is current.
        """
        expected = self._expected
        if expected is None:
            return {}
        _, lost = await on_each(members, lambda n, m: self._serve(n, m, expected))
        return lost

    async def _serve(self, name: str, member: ActorHandle, expected: Expected) -> float:
        wait = self._verifier.await_member
        version, count = expected.version, len(self._buffers)
        LOG.debug("publish: version %d to %s, %d buffers", version, name, count)
        await wait(name, f"the start of version {version}", member.start_update.remote())
        for i, buffer in enumerate(self._buffers):
            try:
                await wait(name, f"buffer {i} of {count}", member.load_update.remote(buffer))
            except OwnerDiedError as error:
                # It is no fault of the member, and would be the next one's too.
                lost = "learner: the rank that holds the published weights is lost"
                raise LearnerError(lost) from error
        await wait(name, f"the end of version {version}", member.finish_update.remote(version))
        return await self._verifier.verify(name, member, expected)


class Sends(Weights, Protocol):
    """What `VllmPublisher` needs of the learner (`LearnerGroup` is one)."""

    async def send_weights(
        self, version: int, members: Mapping[str, ActorHandle], backend: str
    ) -> None:
        """Send the present weights to the members."""
        ...


class VllmPublisher:
    """vLLM's own transfer between GPUs (nccl) or on a shared one (ipc), sent by the ranks.

    A newcomer's weights come out of the learner, which must hold those published last. A transfer
    that breaks counts as the loss of all its members: those that did not cause it hold half an
    update, and are blocked in the collective, which only the sender aborts. A member that died
    before is left out of it.
    """

    def __init__(
        self,
        learner: Sends,
        config: PublishConfig,
        dtype: Dtype,
        probe: TokenIds,
        backend: str,
    ) -> None:
        """`backend` is nccl or ipc; for the rest see `Verifier`."""
        self._learner = learner
        self._dtype: Dtype = dtype
        self._backend = backend
        self._verifier = Verifier(learner, config, dtype, probe)
        self._expected: Expected | None = None

    async def publish(self, version: int, members: Mapping[str, ActorHandle]) -> PublishReport:
        """Bring the learner's present weights, as `version`, to all members, and verify them."""
        started = time.perf_counter()
        reached, lost = await self._sent(version, members)
        expected = await self._verifier.expect(version, reached)
        self._expected = expected
        parity, silent = await self._verified(reached, expected)
        lost |= silent
        return await _reported(self._learner, self._dtype, expected, parity, lost, started)

    async def catch_up(self, members: Mapping[str, ActorHandle]) -> dict[str, str]:
        """Bring members to the version published last, all in one transfer, and verify them; return
        who is lost, and why.

        Before the first publish, the model on disk is current.
        """
        if self._expected is None:
            return {}
        reached, lost = await self._sent(self._expected.version, members)
        _, silent = await self._verified(reached, self._expected)
        return lost | silent

    async def _sent(
        self, version: int, members: Mapping[str, ActorHandle]
    ) -> tuple[dict[str, ActorHandle], dict[str, str]]:
        """Send to all members that live; return those that got it, and the causes of the others."""
        alive, lost = await on_each(members, self._verifier.version_of)
        reached = {name: members[name] for name in alive}
        if not reached:
            return {}, lost
        try:
            await self._learner.send_weights(version, reached, self._backend)
        except LOST_OR_SILENT as error:
            return {}, lost | dict.fromkeys(reached, _said(error))
        return reached, lost

    async def _verified(
        self, members: Mapping[str, ActorHandle], expected: Expected
    ) -> tuple[dict[str, float], dict[str, str]]:
        return await on_each(members, lambda n, m: self._verifier.verify(n, m, expected))


async def _reported(
    learner: Weights,
    dtype: Dtype,
    expected: Expected,
    parity: dict[str, float],
    lost: dict[str, str],
    started: float,
) -> PublishReport:
    elements = sum((await learner.tensor_sizes()).values())
    size = elements * (4 if dtype == "float32" else 2)
    seconds = time.perf_counter() - started
    PUBLISH_SECONDS.observe(seconds)
    PUBLISHED_BYTES.inc(size)
    return PublishReport(expected.version, seconds, size, parity, len(expected.checksums), lost)


async def on_each(
    members: Mapping[str, ActorHandle],
    serve: Any,  # (name, member) -> Awaitable[float]
) -> tuple[dict[str, float], dict[str, str]]:
    """Run `serve` on all members at once; return results and causes of loss, by name.

    Lost is a member whose process or engine has died, or that is silent. Any other error is
    raised, after all have come to an end.
    """
    names = list(members)
    calls: list[Awaitable[float]] = [serve(name, members[name]) for name in names]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    served: dict[str, float] = {}
    lost: dict[str, str] = {}
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, LOST_OR_SILENT):
            lost[name] = _said(outcome)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            served[name] = outcome
    return served, lost


def _said(error: BaseException) -> str:
    """The first line of an error."""
    return str(error).strip().partition("\n")[0]
