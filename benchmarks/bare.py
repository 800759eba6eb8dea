"""The bare libraries that our layers are compared with, as actors of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from actors.records import Completion, GenerationRequest
from actors.vllm_start import engine_settings, set_environment
from benchmarks.local_cluster import free_ports
from benchmarks.shapes import Lengths
from configs.fleets import EngineConfig
from configs.schema import RunConfig
from learner.batching import MicroBatch, Row, split
from learner.rank import Place, Rank

Kind = Literal["rank", "bare"]


class BareEngine:
    """vLLM alone, in the shortest loop there is."""

    def __init__(self, model: str, config: EngineConfig) -> None:
        set_environment()
        from vllm import EngineArgs  # noqa: PLC0415 — after the environment is set
        from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

        arguments = EngineArgs(model=model, seed=0, **engine_settings(config))
        self._engine = LLMEngine.from_engine_args(arguments)
        self._next = 0

    def describe(self) -> dict[str, Any]:
        """Say which process this is; the answer comes once the engine has started."""
        return {"pid": os.getpid()}

    def generate(self, requests: list[GenerationRequest]) -> int:
        """Sample all requests; return the number of tokens."""
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        for request in requests:
            params = SamplingParams(
                temperature=request.sampling.temperature,
                max_tokens=request.sampling.max_tokens,
                seed=request.seed,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            prompt: Any = {"prompt_token_ids": request.prompt_token_ids.tolist()}
            self._engine.add_request(str(self._next), prompt, params)
            self._next += 1
        tokens = 0
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                tokens += len(output.outputs[0].token_ids)  # pyright: ignore
        return tokens


class LearnerLoops:
    """A learner rank, a bare Hugging Face loop, or both, on the same micro-batches by turns."""

    def __init__(
        self, config: RunConfig, model: str, lengths: Lengths, kinds: Sequence[Kind]
    ) -> None:
        rows = _rows(lengths, np.random.default_rng(0))
        self.batches = split(rows, 1, config.learner.micro_batch_tokens)[0]
        self.tokens = sum(len(row.completion.token_ids) for row in rows)
        make = {"rank": self._rank, "bare": self._bare}
        self.runs = {kind: make[kind](config, model) for kind in kinds}

    def describe(self) -> dict[str, Any]:
        """Say which process this is."""
        return {"pid": os.getpid()}

    def measure(self, repeats: int, warm_up: int) -> dict[str, Any]:
        """Seconds of a step of each; a step trains `tokens` tokens."""
        seconds: dict[str, list[float]] = {name: [] for name in self.runs}
        for repeat in range(warm_up + repeats):
            for name, run in self.runs.items():
                _synchronise()
                started = time.perf_counter()
                run()
                _synchronise()
                if repeat >= warm_up:
                    seconds[name].append(time.perf_counter() - started)
        return {"tokens": self.tokens, "seconds": seconds}

    def _rank(self, config: RunConfig, model: str) -> Callable[[], Any]:
        (port,) = free_ports(1)
        rank = Rank(config, model, Place(0, 1, f"127.0.0.1:{port}"))
        return lambda: rank.step(self.batches, 0)

    def _bare(self, config: RunConfig, model: str) -> Callable[[], Any]:
        loop = BareLoop(config, model)
        return lambda: loop.step(self.batches)


class BareLoop:
    """Policy forward and backward, the same reference forward, clipping, AdamW.

    As in the learner, AdamW works on float32 weights, and a layer's activations are computed anew
    in the backward pass where the configuration says so.
    """

    def __init__(self, config: RunConfig, model: str) -> None:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 (seconds)

        self.config = config.learner
        self.device = torch.device("cuda", 0) if self.config.gpus else torch.device("cpu")
        # Any: transformers types `to` as a wrapped function that takes no device.
        load: Any = AutoModelForCausalLM.from_pretrained
        dtype = getattr(torch, config.learner.dtype)
        self.model = load(model, dtype=dtype).to(self.device).train()
        if self.config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.reference = load(model, dtype=dtype).to(self.device).eval()
        self.weights = list(self.model.parameters())
        self.copies = dtype != torch.float32
        self.masters = [w.detach().float() for w in self.weights] if self.copies else self.weights
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=config.learner.learning_rate, fused=True
        )

    def step(self, batches: list[MicroBatch]) -> None:
        """One gradient step with the same loss, written plainly."""
        self.model.zero_grad()
        for batch in batches:
            tokens_BL = torch.as_tensor(batch.tokens_BL, device=self.device)
            mask_BT = torch.as_tensor(batch.mask_BT, device=self.device)
            with torch.no_grad():
                reference_BT = _logprobs(self.reference, tokens_BL)
            logprobs_BT = _logprobs(self.model, tokens_BL)
            advantages_B = torch.as_tensor(batch.advantages_B, device=self.device)
            weights_B = torch.as_tensor(batch.coefficients_B, device=self.device)
            gain_BT = (logprobs_BT - logprobs_BT.detach()).exp() * advantages_B[:, None]
            kl_BT = 0.5 * (logprobs_BT - reference_BT).square()
            loss_BT = weights_B[:, None] * (self.config.kl.coefficient * kl_BT - gain_BT)
            (loss_BT * mask_BT).sum().backward()
        self._apply()

    def _apply(self) -> None:
        pairs = list(zip(self.masters, self.weights, strict=True)) if self.copies else []
        for master, weight in pairs:
            master.grad = weight.grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters, self.config.gradient_clip)
        self.optimizer.step()
        with torch.no_grad():
            for master, weight in pairs:
                weight.copy_(master)


def _logprobs(model: Any, tokens_BL: torch.Tensor) -> torch.Tensor:
    logits_BTV = model(tokens_BL, use_cache=False).logits[:, :-1].float()
    return logits_BTV.log_softmax(-1).gather(-1, tokens_BL[:, 1:, None]).squeeze(-1)


def _rows(lengths: Lengths, generator: np.random.Generator) -> list[Row]:
    """Rows of these lengths, with random tokens."""

    def completion() -> Completion:
        prompt = generator.integers(10, 90, lengths.prompt).astype(np.int32)
        length = int(generator.integers(*lengths.answer))
        answer = generator.integers(10, 90, length).astype(np.int32)
        return Completion(prompt, answer, "", "stop", 0, 0, 0)

    share = 1 / lengths.rows
    return [
        Row(i, completion(), i % 2, 1.0, share, float(generator.normal()))
        for i in range(lengths.rows)
    ]


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
