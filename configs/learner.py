"""Configuration of the learner: optimiser, loss, DeepSpeed, and the weights it publishes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.base import Config, Dtype, Label

Beta = Annotated[float, Field(ge=0, lt=1)]
"""How much of a running mean one step keeps."""


class KLConfig(Config):
    """The KL regularisation towards the frozen reference (docs/equations.md, the KL trap)."""

    coefficient: float = Field(default=0.05, ge=0)
    """β; 0.05 in the paper."""
    estimator: Literal["k1", "k2", "k3"] = "k2"
    """k2 in the loss has the gradient of KL(π‖π_ref); k1 in the loss, the paper's print, has
    none in expectation; k3 has the gradient of KL(π_ref‖π)."""
    level: Literal["token", "sequence"] = "token"
    """Σ_t f(l_t), or f(Σ_t l_t), with l_t the log-ratio of token t."""
    place: Literal["loss", "reward"] = "loss"
    """In the loss, or subtracted from the reward before the advantage, where k1 alone has the
    gradient of KL(π‖π_ref): a warning comes with k2 and k3."""
    watched: bool = True
    """Load the reference at β = 0 too, so that the KL of each role is seen; false saves its memory
    and its forward pass."""

    @property
    def has_reference(self) -> bool:
        """Whether the learner loads the frozen reference."""
        return self.coefficient > 0 or self.watched


class LearnerConfig(Config):
    """DeepSpeed ranks, optimiser and loss."""

    ranks: int = Field(default=1, ge=1)
    """DeepSpeed ranks, one Ray actor each."""
    cpus: float = Field(default=1.0, ge=0)
    """Ray CPUs of each rank."""
    threads: int | None = Field(default=None, ge=1)
    """Threads that each rank computes with on CPU; null: as many as its `cpus`."""
    gpus: float = Field(default=0.0, ge=0, le=1)
    """Ray GPUs of each rank: 1, a fraction where engines share the GPU, 0 on CPU."""
    labels: dict[Label, Label] = Field(default_factory=dict)
    """Labels that the ranks' nodes must have, as those of a fleet."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    offload: bool = False
    """Keep optimiser state (and, with ZeRO-3, parameters) in CPU memory."""
    dtype: Dtype = "bfloat16"
    """Of the forward and backward; the optimiser's master weights are float32."""
    learning_rate: float = Field(default=3e-6, gt=0)
    """3e-6 for LSP and LSP-Zero, 1e-6 for GRPO in the paper."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's, from 0 to below 1. The paper does not name the optimiser."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 switches clipping off. The paper does not state it."""
    warmup: int = Field(default=0, ge=0)
    """Iterations of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Of the learning rate after warm-up, down to 0 where the run ends."""
    micro_batch_tokens: int = Field(default=8192, ge=16)
    """Most padded tokens (rows × longest row) of one forward pass of one rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    logprob_chunk: int = Field(default=1024, ge=1)
    """Tokens whose logits over the vocabulary exist at one time."""
    aggregation: Literal["constant", "token_mean"] = "constant"
    """Σ over tokens divided by a constant (the Solver's token limit, for both roles), or by each
    sequence's own length."""
    advantage_std: bool = False
    """Divide the Solver's advantages by their group's standard deviation (GRPO as TRL has it;
    the paper centres only)."""
    importance_cap: float = Field(default=2.0, gt=0)
    """C of the truncated importance weight min(π_learner/π_engine, C), used at staleness ≥ 1."""
    kl: KLConfig = KLConfig()
    """KL regularisation."""
    placement_deadline_s: float = Field(default=60.0, gt=0)
    """Seconds the ranks may wait for their places before the run says what is missing."""
    start_deadline_s: float = Field(default=1800.0, gt=0)
    """Seconds the learner may take to find a place, and to load its model there."""
    step_deadline_s: float = Field(default=1800.0, gt=0)
    """Seconds a training step may take before the learner counts as lost."""


class PublishConfig(Config):
    """How new weights reach the rollout engines, and how they are verified."""

    backend: Literal["auto", "nccl", "ipc", "object_store"] = "auto"
    """vLLM's transfer engines on GPU (nccl between GPUs, ipc on a shared one); ours through
    Ray's object store on CPU. auto: by where learner and engines are placed."""
    buffer_mib: int = Field(default=256, ge=1)
    """Size of one packed buffer."""
    deadline_s: float = Field(default=300.0, gt=0)
    """Seconds an engine may take over each call of a publish before it counts as hung and is
    replaced; 240 at most over joining a new group of engines (nccl). Over nccl the transfer, or the
    group that is being made, is aborted then, and its other engines are replaced too."""
    parity_tolerance: float = Field(default=0.05, gt=0)
    """Largest mean absolute difference, in nats per token, between the engine's and the
    learner's log-probabilities of the probe prompt."""
    checksum_tensors: int = Field(default=4, ge=0)
    """How many named tensors are read back from each engine and compared bit by bit."""


class CheckpointConfig(Config):
    """When the state is saved."""

    every: int = Field(default=50, ge=1)
    """Iterations between checkpoints; one is always written at a stop and at the end."""
    keep: int = Field(default=2, ge=1)
    """How many are kept, the newest ones."""
    best: str | None = Field(default=None, pattern=r"^[a-z_]+(\.\w+)?$")
    """A figure of metrics.jsonl, for example development.solved: the checkpoint where it was
    highest is kept too, and `selfplay export --best` copies it out. It is looked at whenever a
    checkpoint is due or `development` is measured. null: none."""


class FaultConfig(Config):
    """What counts as too much."""

    bad_groups: int = Field(default=64, ge=1)
    """Groups dropped in a row (NaN reward, no parsable verdict) before the run stops."""
    bad_steps: int = Field(default=3, ge=1)
    """Training steps in a row with a NaN or infinite loss before the run stops."""
    learner_losses: int = Field(default=3, ge=1)
    """Losses of the learner (a rank died or is silent) with no checkpoint between them that end the
    run; at each before, all ranks, and all else, start again from the last checkpoint."""
    rollbacks: int = Field(default=3, ge=1)
    """How often guards may roll the run back before it stops instead."""
