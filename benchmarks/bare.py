"""The bare libraries that our layers are compared with, as actors of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from actors.records import Completion, GenerationRequest
from actors.vllm_start import engine_settings, set_environment
from configs.fleets import EngineConfig
from configs.schema import RunConfig
from learner.batching import MicroBatch, Row, split
from learner.rank import Place, Rank

ROWS, PROMPT, ANSWER = 256, 24, (4, 20)


class BareEngine:
    """vLLM alone, in the shortest loop there is."""

    def __init__(self, model: str, config: EngineConfig) -> None:
        set_environment()
        from vllm import EngineArgs  # noqa: PLC0415 — after the environment is set
        from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

        arguments = EngineArgs(model=model, seed=0, **engine_settings(config))
        self._engine = LLMEngine.from_engine_args(arguments)
        self._next = 0

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


class LearnerPair:
    """A learner rank and a bare Hugging Face loop, on the same micro-batches by turns."""

    def __init__(self, config: RunConfig, model: str) -> None:
        self.config = config
        self.rank = Rank(config, model, Place(0, 1, "127.0.0.1:29655"))
        rows = _rows(np.random.default_rng(0))
        self.batches = split(rows, 1, config.learner.micro_batch_tokens)[0]
        self.tokens = sum(len(row.completion.token_ids) for row in rows)
        self.bare = BareLoop(config, model, self.rank.device)

    def measure(self, repeats: int, warm_up: int) -> dict[str, Any]:
        """Seconds of a step of each; a step trains `tokens` tokens."""
        runs: dict[str, Callable[[], Any]] = {
            "rank": lambda: self.rank.step(self.batches, 0),
            "bare": lambda: self.bare.step(self.batches),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(warm_up + repeats):
            for name, run in runs.items():
                _synchronise()
                started = time.perf_counter()
                run()
                _synchronise()
                if repeat >= warm_up:
                    seconds[name].append(time.perf_counter() - started)
        return {"tokens": self.tokens, "seconds": seconds}


class BareLoop:
    """Policy forward and backward, the same reference forward, clipping, AdamW."""

    def __init__(self, config: RunConfig, model: str, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 (seconds)

        self.config, self.device = config.learner, device
        # Any: transformers types `to` as a wrapped function that takes no device.
        load: Any = AutoModelForCausalLM.from_pretrained
        dtype = getattr(torch, config.learner.dtype)
        self.model = load(model, dtype=dtype).to(device)
        self.reference = load(model, dtype=dtype).to(device).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learner.learning_rate, fused=True
        )

    def step(self, batches: list[MicroBatch]) -> None:
        """One gradient step with the same loss, written plainly."""
        self.optimizer.zero_grad()
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
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()


def _logprobs(model: Any, tokens_BL: torch.Tensor) -> torch.Tensor:
    logits_BTV = model(tokens_BL, use_cache=False).logits[:, :-1].float()
    return logits_BTV.log_softmax(-1).gather(-1, tokens_BL[:, 1:, None]).squeeze(-1)


def _rows(generator: np.random.Generator) -> list[Row]:
    """Answers of the quickstart's lengths, with random tokens."""

    def completion() -> Completion:
        prompt = generator.integers(10, 90, PROMPT).astype(np.int32)
        answer = generator.integers(10, 90, int(generator.integers(*ANSWER))).astype(np.int32)
        return Completion(prompt, answer, "", "stop", 0, 0, 0)

    return [
        Row(i, completion(), i % 2, 1.0, 1 / ROWS, float(generator.normal())) for i in range(ROWS)
    ]


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
