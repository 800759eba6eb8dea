"""Weights into a running vLLM engine: our transfer engine for CPU, and what each worker adds.

vLLM imports this module in every worker (`worker_extension_cls`), before it loads the model and
creates the transfer engine: importing it registers the backend `object_store`. On GPU the same
calls drive vLLM's own backends `nccl` and `ipc`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from actors.packing import PackedBuffer, checksum, unpack

BACKEND = "object_store"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on: buffers come with the calls."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One `PackedBuffer`, field by field."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]
    data: npt.NDArray[np.uint8]

    @property
    def buffer(self) -> PackedBuffer:
        """The buffer that the fields were taken from."""
        return PackedBuffer(
            names=self.names,
            dtypes=self.dtypes,
            shapes=self.shapes,
            offsets=self.offsets,
            data=self.data,
        )


class ObjectStoreEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads packed buffers that arrive as arguments of `update_weights`."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Do nothing: there is no connection."""

    def start_weight_update(self) -> None:
        """Give the layers their checkpoint layout back, to be loaded and packed anew."""
        self._missing = {name for name, _ in self.model.named_parameters()}
        # Found now: while a model reloads, its layers share nothing.
        self._tied_heads = tied_heads(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one buffer. (vLLM's own method would synchronise a GPU afterwards.)"""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load the tensors of one buffer."""
        model: Any = self.model
        self._missing -= model.load_weights(unpack(update_info.buffer))

    def finish_weight_update(self) -> None:
        """Process the loaded layers, and repack the head that tied weights leave stale.

        Raises:
            ValueError: No tensor of some parameter has come: it would keep its old value.
        """
        if self._missing:
            raise ValueError(f"the weight update left out {sorted(self._missing)}")
        with _no_misleading_warning():
            finalize_layerwise_reload(self.model, self.model_config)
        for head in self._tied_heads:
            # Its weight is the embedding's, now loaded; its packed copy is what it computes with.
            dispatch_cpu_unquantized_gemm(head, remove_weight=False)

    def shutdown(self) -> None:
        """Do nothing: there is no connection."""

    @staticmethod
    def trainer_send_weights(iterator: Iterator[Any], trainer_args: Any) -> None:
        """Refuse: vLLM 0.25 lets no engine be made without a sending end."""
        del iterator, trainer_args
        raise NotImplementedError("the learner's publisher sends, through Ray's object store")


def tied_heads(model: nn.Module) -> list[nn.Module]:
    """Return the output heads whose weight is an embedding's own."""
    modules = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    embeddings = {id(m.weight) for m in modules if not isinstance(m, ParallelLMHead)}
    return [m for m in modules if isinstance(m, ParallelLMHead) and id(m.weight) in embeddings]


@contextmanager
def _no_misleading_warning() -> Iterator[None]:
    """Silence vLLM's "<layer>: Failed to load weights" while it finalises a complete update.

    `finish_weight_update` has made sure that nothing is missing. What vLLM still warns of has no
    tensor in a checkpoint: a tied head, which is repacked, and tables of rotary embeddings.
    """
    logger = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")

    def keep(record: logging.LogRecord) -> bool:
        return "Failed to load weights" not in str(record.msg)

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class PolicyWorker:
    """Methods that vLLM mixes into each worker of an engine whose weights are updated."""

    def renew_transfer(self: Any, init_info: dict[str, Any]) -> None:
        """Connect to the trainer, after letting go of an earlier connection (it would leak)."""
        engine = self.weight_transfer_engine
        group = getattr(engine, "model_update_group", None)
        engine.shutdown()
        if group is not None:
            # 0.25's shutdown only forgets it.
            group.destroy()
        self.init_weight_transfer_engine(init_info)

    def tensor_checksums(self: Any, names: list[str]) -> dict[str, int]:
        """Return the CRC-32 of those tensors that lie in this worker as in the checkpoint.

        Left out: what tensor parallelism shards, and on CPU the linear layers, which exist only
        in a packed form.
        """
        if self.parallel_config.tensor_parallel_size > 1:
            return {}
        model = self.get_model()
        found = {name: checkpoint_tensor(model, name) for name in names}
        return {name: checksum(t) for name, t in found.items() if t is not None}


def checkpoint_tensor(model: nn.Module, name: str) -> torch.Tensor | None:
    """Return the tensor that a checkpoint calls `name`, None where its layout is another.

    vLLM pads vocabularies with rows, and fuses layers (q, k, v into one) row by row.
    """
    parameters = dict(model.named_parameters())
    if name in parameters:
        return _without_padding(model, name, parameters[name])
    module_name, _, parameter = name.rpartition(".")
    parent, _, part = module_name.rpartition(".")
    fusions: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    for fused, parts in fusions.items():
        tensor = parameters.get(f"{parent}.{fused}.{parameter}")
        if part in parts and tensor is not None and tensor.numel() > 0:
            sizes = model.get_submodule(f"{parent}.{fused}").output_sizes
            return tensor.split(sizes)[parts.index(part)]
    return None


def _without_padding(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, VocabParallelEmbedding):
        return tensor[: module.org_vocab_size]
    return tensor if tensor.numel() > 0 else None


WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreEngine)
