"""One DeepSpeed rank: the policy under ZeRO, the frozen reference beside it, one step at a time.

A plain class, so that a test or a script can drive it without Ray; `learner/actor.py` wraps it.
Each method that touches the weights is a collective: every rank of the group must call it, in
the same order.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from actors.packing import checksum
from actors.records import TokenIds
from configs.errors import UserError
from configs.schema import RunConfig
from learner.batching import PADDING_ROW, MicroBatch, padding_share
from learner.checkpoint import Sizes, sizes
from learner.deepspeed_config import deepspeed_config, learning_rate, reference_config
from learner.logprobs import LogProbHead, ScoringModel
from learner.losses import (
    LossInputs,
    LossSettings,
    kl_estimate,
    loss_sums,
    row_losses,
    summarise,
)
from learner.weights import gathered, tensor_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEEPSPEED_TAG = "learner"
"""Folder of DeepSpeed's files inside a checkpoint; given by name, so that DeepSpeed's own
`latest` file plays no part."""

Sums = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Place:
    """Where a rank stands: its number, how many there are, and where they meet."""

    rank: int
    world: int
    address: str  # host:port of rank 0


@dataclass(frozen=True)
class RankReport:
    """What one step did. Metrics are of all ranks, `bad_rows` of this one: ids of rows whose
    loss is NaN or infinite. `applied` is False where the weights were left as they were."""

    metrics: dict[str, float]
    bad_rows: list[int]
    applied: bool


class Rank:
    """A DeepSpeed rank with its shard of the policy, of the optimiser, and a reference model."""

    def __init__(self, config: RunConfig, model_path: str, place: Place) -> None:
        self.config = config.learner
        self.iterations = config.iterations
        self.model_path = model_path
        self._source: dict[str, Any] = {
            "revision": config.model.revision,
            "trust_remote_code": config.model.trust_remote_code,
        }
        self.place = place
        self.device = _join(
            self.config.gpus > 0, self.config.threads or max(1, int(self.config.cpus)), place
        )
        self.dtype: torch.dtype = getattr(torch, self.config.dtype)
        kl = self.config.kl
        self.settings = LossSettings(
            beta=kl.coefficient if kl.place == "loss" else 0.0,
            estimator=kl.estimator,
            level=kl.level,
            importance_cap=self.config.importance_cap if config.staleness > 0 else None,
        )
        self.engine = self._policy_engine()
        self.reference = self._reference_model() if kl.has_reference else None

    @property
    def model(self) -> PreTrainedModel:
        """The policy as transformers knows it; its parameters are sharded under ZeRO-3."""
        return self.engine.module.model

    def step(self, batches: Sequence[MicroBatch], iteration: int) -> RankReport:
        """Take one gradient step on this rank's share of a batch, or none where it is not finite.

        Every rank must have the same number of micro-batches.
        """
        started = time.perf_counter()
        rate = learning_rate(self.config, iteration, self.iterations)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        sums, bad_rows = self._accumulate(batches)
        totals = self._over_ranks(sums)
        applied, norm = self._apply()
        metrics = summarise(totals) | {
            "grad_norm": norm,
            "learning_rate": rate,
            "bad_rows": totals["bad"],
            "padding_share": padding_share([batches]),
            "step_seconds": time.perf_counter() - started,
        }
        return RankReport(metrics, bad_rows, applied)

    @torch.no_grad()
    def kl(self, batches: Sequence[MicroBatch]) -> dict[int, float]:
        """Return the KL estimate of each row to the reference (`learner.kl.place: reward`)."""
        estimates: dict[int, float] = {}
        for batch in batches:
            inputs, _ = self._forward(batch)
            assert inputs.reference_BT is not None, "asked for only where β > 0"
            log_ratio_BT = inputs.logprobs_BT - inputs.reference_BT
            kl = self.config.kl
            kl_B = kl_estimate(log_ratio_BT, inputs.mask_BT, kl.estimator, kl.level)
            estimates |= dict(zip(batch.row_ids.tolist(), kl_B.tolist(), strict=True))
        estimates.pop(PADDING_ROW, None)
        return estimates

    @torch.no_grad()
    def probe(self, token_ids: TokenIds) -> npt.NDArray[np.float32]:
        """Return the log-probabilities [L − 1] of the tokens after the first, temperature 1."""
        tokens_BL = torch.tensor(token_ids, dtype=torch.long, device=self.device)[None]
        mask_BT = torch.ones_like(tokens_BL[:, 1:], dtype=torch.bool)
        temperature_B = torch.ones(1, device=self.device)
        logprobs_BT, _ = self.engine(tokens_BL, mask_BT, temperature_B)
        return logprobs_BT[0].cpu().numpy()

    def tensors(
        self,
        dtype: torch.dtype,
        group_bytes: int,
        device: torch.device | str = "cpu",
        names: frozenset[str] | None = None,
        on_every_rank: bool = False,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield copies of the policy's tensors, whole, on rank 0 or on every rank.

        All ranks must exhaust it, those that yield nothing too.
        """
        return gathered(
            self.model,
            dtype=dtype,
            device=device,
            group_bytes=group_bytes,
            keep=on_every_rank or self.place.rank == 0,
            names=names,
        )

    def checksums(self, names: Sequence[str], dtype: torch.dtype) -> dict[str, int]:
        """Return the checksums of the named tensors, as published in `dtype` (on rank 0)."""
        tensors = self.tensors(dtype, group_bytes=1, names=frozenset(names))
        return {name: checksum(tensor) for name, tensor in tensors}

    def tensor_sizes(self) -> dict[str, int]:
        """Return the number of elements of each tensor."""
        return tensor_sizes(self.model)

    def save(self, folder: Path) -> Sizes:
        """Write this rank's part of DeepSpeed's state into `folder`; return the files it sees."""
        state = {"world": self.place.world, "zero_stage": self.config.zero_stage}
        with _writing(folder):
            self.engine.save_checkpoint(
                str(folder), tag=DEEPSPEED_TAG, client_state=state, save_latest=False
            )
        return sizes(folder / DEEPSPEED_TAG)

    def load(self, folder: Path) -> None:
        """Take up the state that `save` wrote."""
        loaded, _ = self.engine.load_checkpoint(str(folder), tag=DEEPSPEED_TAG)
        if loaded is None:
            raise UserError(f"checkpoint {folder} holds no learner state: it is not whole")

    def export(self, folder: Path, group_bytes: int) -> Sizes:
        """Write a Hugging Face checkpoint with its tokenizer, loadable as it is (rank 0)."""
        state = dict(self.tensors(self.dtype, group_bytes))
        if self.place.rank != 0:
            return {}
        from transformers import AutoTokenizer  # noqa: PLC0415 (rank 0 alone needs it)

        tokenizer = AutoTokenizer.from_pretrained(self.model_path, **self._source)
        with _writing(folder):
            self.model.save_pretrained(folder, state_dict=state)
            tokenizer.save_pretrained(folder)
        return sizes(folder)

    # --- one step ---

    def _accumulate(self, batches: Sequence[MicroBatch]) -> tuple[Sums, list[int]]:
        """Run forward and backward over all micro-batches; return sums and non-finite rows."""
        totals: Sums = {}
        bad_rows: list[int] = []
        for i, batch in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
            inputs, entropy_BT = self._forward(batch)
            losses_B = row_losses(inputs, self.settings)
            # DeepSpeed averages over ranks (undone here) and over accumulation steps (not asked).
            self.engine.backward(losses_B.sum() * self.place.world, scale_wrt_gas=False)
            finite_B = losses_B.isfinite().cpu().numpy()
            bad_rows += batch.row_ids[~finite_B].tolist()
            sums = loss_sums(losses_B, inputs, entropy_BT, self.config.importance_cap)
            totals = {key: totals.get(key, 0.0) + value for key, value in sums.items()}
        totals["bad"] = torch.tensor(len(bad_rows), device=self.device)
        return totals, bad_rows

    def _forward(self, batch: MicroBatch) -> tuple[LossInputs, torch.Tensor]:
        def here(array: npt.NDArray[Any]) -> torch.Tensor:
            return torch.tensor(array, device=self.device)

        mask_BT = here(batch.mask_BT)
        arguments = (here(batch.tokens_BL), mask_BT, here(batch.temperatures_B))
        reference_BT = None
        if self.reference is not None:
            with torch.no_grad():
                reference_BT, _ = self.reference(*arguments)
        logprobs_BT, entropy_BT = self.engine(*arguments)
        inputs = LossInputs(
            logprobs_BT=logprobs_BT,
            reference_BT=reference_BT,
            engine_BT=here(batch.engine_BT),
            mask_BT=mask_BT,
            has_engine_B=here(batch.has_engine_B),
            advantages_B=here(batch.advantages_B),
            coefficients_B=here(batch.coefficients_B),
            counts_B=here(batch.counts_B),
            roles_B=here(batch.roles_B),
        )
        return inputs, entropy_BT

    def _apply(self) -> tuple[bool, float]:
        """Step the optimiser unless a gradient is not finite; return (applied, gradient norm)."""
        if self._plain_optimizer:
            norm = float(_gradient_norm(self.engine.module))
            if not math.isfinite(norm):
                self.engine.zero_grad()
                return False, norm
            self.engine.step()
            return True, norm
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return self.engine.was_step_applied(), math.nan if norm is None else float(norm)

    @property
    def _plain_optimizer(self) -> bool:
        """ZeRO stage 0 in float32: DeepSpeed checks no gradient there and reports no norm."""
        return self.config.zero_stage == 0 and self.config.dtype == "float32"

    def _over_ranks(self, sums: Sums) -> dict[str, float]:
        keys = sorted(sums)
        vector = torch.stack([sums[key].detach().to(torch.float64) for key in keys])
        dist.all_reduce(vector)
        return dict(zip(keys, vector.tolist(), strict=True))

    # --- models ---

    def _policy_engine(self) -> Any:
        import deepspeed  # noqa: PLC0415 (heavy, and it looks for compilers at import)
        from deepspeed.utils import set_z3_leaf_modules  # noqa: PLC0415

        scoring = self._scoring_model()
        if self.config.gradient_checkpointing:
            scoring.model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.config.zero_stage == 3:
            set_z3_leaf_modules(scoring, [LogProbHead])
        scoring.train()
        initialize: Any = deepspeed.initialize  # its annotations leave out what it takes
        engine, *_ = initialize(
            model=scoring,
            optimizer=self._optimizer(scoring),
            config=deepspeed_config(self.config, **_size(scoring)),
            dist_init_required=False,
        )
        return engine

    def _optimizer(self, scoring: ScoringModel) -> torch.optim.Optimizer:
        settings: dict[str, Any] = {
            "lr": self.config.learning_rate,
            "betas": self.config.betas,
            "weight_decay": self.config.weight_decay,
        }
        if self.config.offload and self.config.gpus > 0:
            from deepspeed.ops.adam import DeepSpeedCPUAdam  # noqa: PLC0415 (compiles at use)

            return DeepSpeedCPUAdam(scoring.parameters(), **settings)
        return torch.optim.AdamW(scoring.parameters(), fused=True, **settings)

    def _reference_model(self) -> Any:
        """Load the frozen reference: whole on each rank, or sharded where the policy is.

        ZeRO-3 is chosen for a policy too large for one GPU, and the reference is as large.
        """
        scoring = self._scoring_model().requires_grad_(False).eval()
        if self.config.zero_stage < 3:
            return scoring.to(self.device)
        import deepspeed  # noqa: PLC0415
        from deepspeed.utils import set_z3_leaf_modules  # noqa: PLC0415

        set_z3_leaf_modules(scoring, [LogProbHead])
        settings = reference_config(self.config, **_size(scoring))
        engine, *_ = deepspeed.initialize(model=scoring, config=settings, dist_init_required=False)
        return engine

    def _scoring_model(self) -> ScoringModel:
        from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 (seconds)

        config = AutoConfig.from_pretrained(self.model_path, **self._source)
        for name, value in config.to_dict().items():
            # Dropout would make π/sg π a ratio of two different networks.
            if "drop" in name and isinstance(value, float):
                setattr(config, name, 0.0)
        model = AutoModelForCausalLM.from_pretrained(
            self.model_path, config=config, dtype=self.dtype, **self._source
        )
        return ScoringModel(model, self.config.logprob_chunk)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what a disk does that fills up, which torch and safetensors tell by errors of their own.

    An OSError is left to `learner.checkpoint`.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        said = str(error).strip().partition("\n")[0]
        raise UserError(
            f"checkpoint folder {folder} cannot be written ({said}): free some space, then continue"
            " the run with selfplay resume"
        ) from error


def _size(scoring: ScoringModel) -> dict[str, int]:
    return {
        "hidden_size": int(scoring.model.config.get_text_config().hidden_size),
        "parameters": sum(tensor_sizes(scoring).values()),
    }


def _gradient_norm(module: torch.nn.Module) -> torch.Tensor:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _join(on_gpu: bool, threads: int, place: Place) -> torch.device:
    """Enter the process group of the learner's ranks; return this rank's device."""
    import deepspeed  # noqa: PLC0415

    backend = "nccl" if on_gpu else "gloo"
    if not on_gpu:
        torch.set_num_threads(threads)
        # A kernel for inference that gloo does not need; compiling it takes most of a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Ray shows each rank its own GPU alone, as number 0; DeepSpeed reads the environment.
    os.environ |= {"LOCAL_RANK": "0", "RANK": str(place.rank), "WORLD_SIZE": str(place.world)}
    dist.init_process_group(
        backend, init_method=f"tcp://{place.address}", rank=place.rank, world_size=place.world
    )
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")
