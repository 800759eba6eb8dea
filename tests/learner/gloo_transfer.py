"""vLLM's nccl transfer without a GPU: gloo in NCCL's place, tensors on CPU.

The sending end is `LearnerRank.send_weights`, vLLM's trainer engine, our `MembersClient`. Each
receiving end has a process of its own: vLLM's worker methods and its `NCCLWeightTransferEngine`,
with our `PolicyWorker.renew_transfer`. The rendezvous (`StatelessProcessGroup`), the packing and
the layerwise reload are vLLM's code as it is.

Replaced, because it needs a GPU, is only: `PyNcclCommunicator`, whose collectives go through a
gloo group at the same store; the CUDA streams of the packed broadcast, which here are nothing to
wait for; and `torch.accelerator`'s device number and synchronisation. Where vLLM 0.25's static
functions are not in the installed vLLM, `StaticSender` runs against functions of the same
signatures around the same broadcast, and its receivers take the packing from each update, as 0.25's
do; with vLLM 0.25 installed, against those functions and receivers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist

from configs.load import load
from configs.schema import RunConfig
from learner import vllm_trainer
from learner.actor import LearnerRank
from learner.rank import Place, Rank
from tests.conftest import ROOT

CONFIG = load(
    ROOT / "configs" / "llama-3.2-3b-lsp.yaml",
    ["publish.buffer_mib=1", "publish.deadline_s=60"],
)
BUFFER = 1 << 20
GLOO_SECONDS = 20
"""How long a rank that nobody meets waits before the test fails."""


class GlooCommunicator:
    """What vLLM's transfer uses of `PyNcclCommunicator`, over gloo.

    As with NCCL, whatever is done together waits for a member that is dead: the meeting for ever,
    all else until the communicator is aborted.
    """

    dies_when_it = ""
    """Where this process ends: "meets" the others, or "warms up" the new connection."""

    def __init__(self, group: Any, device: Any) -> None:
        del device
        self.rank = group.rank
        self.sizes: list[int] = []
        self.destroyed = self.disabled = False
        self.nccl = SimpleNamespace(ncclCommAbort=self._abort)
        self._aborted = threading.Event()
        group.broadcast_obj("id", src=0)
        self._may_die("meets")
        self._gloo = self._meet(group)
        self.comm = "comm"
        self._may_die("warms up")
        if not self.disabled:
            self._wait(self._gloo.allreduce([torch.zeros(1)]))

    def _meet(self, group: Any) -> dist.ProcessGroupGloo:
        store = dist.PrefixStore("gloo", group.store)
        limit = timedelta(seconds=GLOO_SECONDS)
        try:
            return dist.ProcessGroupGloo(store, group.rank, group.world_size, limit)
        except RuntimeError:  # gloo gives up, NCCL does not
            threading.Event().wait()
            raise

    def _may_die(self, where: str) -> None:
        if self.dies_when_it == where:
            os._exit(1)

    def _wait(self, work: Any) -> None:
        try:
            work.wait()
        except RuntimeError:  # gloo sees the loss, NCCL does not
            if not self._aborted.wait(GLOO_SECONDS):
                raise

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        assert not self.destroyed
        if self.disabled:
            return
        self.sizes.append(tensor.nbytes)
        options = dist.BroadcastOptions()
        options.rootRank = src
        self._wait(self._gloo.broadcast([tensor], options))

    def _abort(self, comm: str) -> None:
        assert comm == "comm"
        assert self.disabled, "the thread that waits would use it at once"
        self._aborted.set()

    def destroy(self) -> None:
        self.destroyed = True


class Stream:
    """A GPU's, on which nothing is under way."""

    def synchronize(self) -> None:
        pass


def replace_nccl(replace: Callable[[Any, str, Any], None]) -> None:
    """Take out of this process what needs a GPU, by `setattr` or a patch that is undone."""
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.weight_transfer import packed_tensor

    replace(pynccl, "PyNcclCommunicator", GlooCommunicator)
    if hasattr(packed_tensor, "_get_streams"):
        replace(packed_tensor, "_get_streams", lambda device, count: (Stream(),) * count)
    else:  # 0.25
        replace(torch.cuda, "Stream", Stream)
    replace(torch.accelerator, "current_device_index", lambda: 0)
    replace(torch.accelerator, "synchronize", lambda: None)


class Model(torch.nn.ModuleDict):
    """Layers whose first is larger than a buffer, and of which several share one."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(
            {
                "embedding": torch.nn.Embedding(1200, 512),
                "first": torch.nn.Linear(512, 300),
                "second": torch.nn.Linear(300, 512),
                "third": torch.nn.Linear(512, 900),
                "norm": torch.nn.LayerNorm(512),
            }
        )

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Load tensors by name, as vLLM's models do."""
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            loader = getattr(parameters[name], "weight_loader", default_weight_loader)
            loader(parameters[name], tensor)


class Receiver:
    """A member of the rollout fleet, as far as its weights go."""

    def __init__(self) -> None:
        replace_nccl(setattr)

    def begin(self, packing_by_update: bool) -> None:
        """Be a new member."""
        from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
        from vllm.v1.worker.gpu_worker import Worker

        from actors.transfer import PolicyWorker

        self.model = Model(seed=1).bfloat16()
        record_metadata_for_reloading(self.model)
        kind = type("PolicyGpuWorker", (PolicyWorker, Worker), {})
        self.worker: Any = object.__new__(kind)
        one = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        self.worker.vllm_config = SimpleNamespace(parallel_config=one, model_config=None)
        self.worker.model_runner = SimpleNamespace(reset_lora_state=lambda: None)
        self.worker._weight_update_active = self.worker._weight_update_is_draft = False
        self.worker.weight_transfer_engine = receiving_engine(packing_by_update)(
            None, self.worker.vllm_config, torch.device("cpu"), self.model
        )
        self.groups: list[GlooCommunicator] = []
        self.served, self.dies = 0, False
        self.hangs_or_dies = ""

    def init_transfer(self, info: dict[str, Any]) -> None:
        if self.hangs_or_dies == "comes":
            os._exit(1)
        if self.hangs_or_dies == "is silent":
            threading.Event().wait()
        GlooCommunicator.dies_when_it = self.hangs_or_dies
        self.worker.renew_transfer(info)
        self.groups.append(self.worker.weight_transfer_engine.model_update_group)

    def start_update(self) -> None:
        self.worker.start_weight_update()

    def load_update(self, info: dict[str, Any]) -> None:
        if self.dies:
            os._exit(1)
        self.worker.update_weights(info)

    def die_in_next_update(self) -> None:
        self.dies = True

    def fail_when_it(self, where: str) -> None:
        """Die, or be silent, at that point of the next connection."""
        self.hangs_or_dies = where

    def finish_update(self, version: int) -> None:
        self.worker.finish_weight_update()
        self.served = version

    def state(self) -> tuple[int, dict[str, torch.Tensor]]:
        """The version served, and the weights it is served with."""
        return self.served, {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def connections(self) -> list[tuple[int, bool]]:
        """Of each group it was in: its rank there, and whether it has left it."""
        return [(group.rank, group.destroyed) for group in self.groups]


def needs_trainer_engines() -> None:
    """Skip the test where the installed vLLM has none."""
    if not vllm_trainer._has_trainer_factory():
        pytest.skip("vLLM 0.25 has no trainer engines")


def receiving_engine(packing_by_update: bool) -> type:
    """vLLM's receiving engine: as in 0.25, told the packing with each update, or as installed."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    class Engine025(NCCLWeightTransferEngine):
        def parse_update_info(self, update_dict: dict[str, Any]) -> Any:
            told = dict(update_dict)
            self.packed = told.pop("packed")
            self.packed_buffer_size_bytes = told.pop("packed_buffer_size_bytes")
            return super().parse_update_info(told)

        def shutdown(self) -> None:
            # It gives no communicator back.
            self.model_update_group = None

    imitated = packing_by_update and vllm_trainer._has_trainer_factory()
    return Engine025 if imitated else NCCLWeightTransferEngine


def use_functions_of_025(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the sending end vLLM 0.25's two static functions instead of a trainer engine."""
    if not vllm_trainer._has_trainer_factory():
        return
    from vllm.distributed.weight_transfer import nccl_engine, packed_tensor

    def trainer_send_weights(
        iterator: Iterator[tuple[str, torch.Tensor]], trainer_args: dict[str, Any]
    ) -> None:
        assert trainer_args.pop("packed") is True
        packed_tensor.packed_nccl_broadcast_producer(
            iterator,
            trainer_args.pop("group"),
            src=0,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=trainer_args.pop("packed_buffer_size_bytes"),
        )
        assert trainer_args == {}

    engine = nccl_engine.NCCLWeightTransferEngine
    functions = {
        "trainer_init": nccl_engine.open_trainer_endpoint,
        "trainer_send_weights": trainer_send_weights,
    }
    for name, function in functions.items():
        monkeypatch.setattr(engine, name, staticmethod(function), raising=False)
    monkeypatch.setattr(vllm_trainer, "_has_trainer_factory", lambda: False)


def sending_end(model: Model, config: RunConfig = CONFIG) -> LearnerRank:
    """The only learner rank, with everything of a rank that sending needs."""
    rank = SimpleNamespace(model=model, place=Place(0, 1, ""), device=torch.device("cpu"))
    rank.tensors = partial(Rank.tensors, rank)
    end: Any = object.__new__(LearnerRank)
    end._config, end._rank, end._sender, end._connected = config, rank, None, {}
    return end


def train(model: Model) -> None:
    """Change every weight."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape)


def check_holds(receiver: Any, model: Model, version: int) -> None:
    """Assert that a receiver serves the model's weights, every one and exactly, as `version`."""
    served, weights = ray.get(receiver.state.remote())
    assert served == version
    sent = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    assert weights.keys() == sent.keys()
    for name, tensor in sent.items():
        assert torch.equal(weights[name], tensor), name


def check_packed(sizes: list[int], model: Model) -> None:
    """Assert that the model went in fewer messages than it has tensors, and in more than one."""
    tensors = [2 * p.numel() for p in model.parameters()]
    assert sum(sizes) == sum(tensors)
    assert 1 < len(sizes) < len(tensors)
    assert max(sizes) <= BUFFER + max(tensors)
