"""A DeepSpeed rank as a Ray actor: a thin shell around `learner.rank.Rank`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from actors.logs import keep_libraries, keep_log, note
from actors.packing import pack
from actors.records import TokenIds
from actors.telemetry import serve_metrics
from configs.base import Dtype
from configs.schema import RunConfig
from learner.batching import MicroBatch
from learner.checkpoint import Sizes
from learner.metrics import observe_step
from learner.rank import Place, Rank, RankReport
from learner.vllm_trainer import Sender, connect

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class LearnerRank:
    """One rank. `start` is a call of its own: all ranks must exist before any can meet."""

    def __init__(self, config: RunConfig, model_path: str) -> None:
        self._config = config
        self._model_path = model_path
        self._metrics_address = serve_metrics(config.metrics.host)
        self._sender: Sender | None = None
        self._connected: dict[str, ActorHandle] = {}

    def meeting_point(self) -> str:
        """Return a free `host:port` on this rank's node."""
        return f"{ray.util.get_node_ip_address()}:{_free_port()}"

    def start(self, rank: int, address: str) -> None:
        """Load the model and join the other ranks at `address`."""
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415 (seconds)

        disable_progress_bar()
        keep_log(self._config.run_dir, f"learner-{rank}")
        place = Place(rank, self._config.learner.ranks, address)
        self._rank = Rank(self._config, self._model_path, place)
        keep_libraries()

    def step(self, batches: Sequence[MicroBatch], iteration: int) -> RankReport:
        """See `Rank.step`."""
        note(iteration=iteration, version=iteration)
        report = self._rank.step(batches, iteration)
        if self._config.colocate:
            # What torch keeps for the next step, the engine that wakes up now needs.
            torch.cuda.empty_cache()
        observe_step(report.metrics, iteration, report.applied)
        return report

    def kl(self, batches: Sequence[MicroBatch]) -> dict[int, float]:
        """See `Rank.kl`."""
        return self._rank.kl(batches)

    def probe(self, token_ids: TokenIds) -> npt.NDArray[np.float32]:
        """See `Rank.probe`."""
        return self._rank.probe(token_ids)

    def pack(self, buffer_bytes: int, dtype: Dtype) -> list[ray.ObjectRef[Any]]:
        """Put the weights into the object store as packed buffers; rank 0 returns them."""
        tensors = self._rank.tensors(getattr(torch, dtype), buffer_bytes)
        return [ray.put(buffer) for buffer in pack(tensors, buffer_bytes)]

    def checksums(self, names: Sequence[str], dtype: Dtype) -> dict[str, int]:
        """See `Rank.checksums`."""
        return self._rank.checksums(names, getattr(torch, dtype))

    def tensor_sizes(self) -> dict[str, int]:
        """See `Rank.tensor_sizes`."""
        return self._rank.tensor_sizes()

    def send_weights(self, version: int, members: Mapping[str, ActorHandle], backend: str) -> None:
        """Send the weights to the members through vLLM's trainer engine (nccl, ipc).

        A changed set of members is connected anew, since their ranks in the group are others, and
        so is one whose last transfer broke.
        """
        if self._connected != dict(members):
            self._disconnect()
            self._sender = connect(self._rank, self._config, members, backend)
            self._connected = dict(members)
        assert self._sender is not None, "there is a sender wherever members are connected"
        try:
            self._sender.send(version)
        except BaseException:
            self._disconnect()
            raise

    def save(self, folder: Path) -> Sizes:
        """See `Rank.save`."""
        return self._rank.save(folder)

    def load(self, folder: Path) -> None:
        """See `Rank.load`."""
        self._rank.load(folder)

    def export(self, folder: Path, group_bytes: int) -> Sizes:
        """See `Rank.export`."""
        return self._rank.export(folder, group_bytes)

    def describe(self) -> dict[str, Any]:
        """Return who and where this rank is."""
        return {
            "pid": os.getpid(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "metrics_address": self._metrics_address,
        }

    def _disconnect(self) -> None:
        sender, self._sender, self._connected = self._sender, None, {}
        if sender is not None:
            sender.shutdown()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]
