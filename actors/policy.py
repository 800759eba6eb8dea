"""The engine of the policy: one whose weights are replaced while it serves.

Between `start_update` and `finish_update` the engine takes no step: requests in flight wait, and
then go on with the new weights, their cached keys and values computed anew. An engine whose
update fails half-way has neither the old weights nor the new: it stops, with that error for
everyone who waits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import Gauge, Histogram

from actors.engine import Engine
from actors.records import LogProbs, TokenIds

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

POLICY_VERSION = Gauge(
    "selfplay_rollout_policy_version", "Version of the weights that this engine serves."
)
UPDATE_SECONDS = Histogram(
    "selfplay_rollout_weight_update_seconds",
    "Time in which this engine took no step because its weights were being replaced.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)


class PolicyEngine(Engine):
    """An engine that takes new weights. Each method returns at once, with a future."""

    def init_transfer(self, init_info: dict[str, Any]) -> Future[None]:
        """Connect to the trainer, with what the backend's `init_info` needs on this member."""
        return self.run(lambda llm: self._call_workers(llm, "renew_transfer", init_info))

    def start_update(self) -> Future[None]:
        """Stop stepping and make ready for new weights."""
        return self.run(self._start_update, fatal=True)

    def load_update(self, info: dict[str, Any]) -> Future[None]:
        """Load what one message of the backend brings (object_store: a `PackedBuffer`)."""
        return self.run(lambda llm: self._call_workers(llm, "update_weights", info), fatal=True)

    def finish_update(self, version: int) -> Future[None]:
        """Put the loaded weights to use as policy `version`, and go on stepping."""
        return self.run(lambda llm: self._finish_update(llm, version), fatal=True)

    def checksums(self, names: list[str]) -> Future[dict[str, int]]:
        """Return the CRC-32 of named tensors, for those names whose layout permits."""
        return self.run(lambda llm: llm.collective_rpc("tensor_checksums", args=(names,))[0])

    def probe(self, sequences: Sequence[TokenIds]) -> Future[list[LogProbs]]:
        """Return each sequence's log-probabilities [tokens - 1] of tokens 1…, at temperature 1.

        They are computed with the weights of the moment: a prompt whose log-probabilities are
        asked for reads no prefix cache.
        """
        from vllm import SamplingParams  # noqa: PLC0415 — vllm takes seconds to import

        params = SamplingParams(
            max_tokens=1, prompt_logprobs=0, detokenize=False, skip_reading_prefix_cache=True
        )
        return self._enqueue([(ids, params.clone(), _prompt_logprobs) for ids in sequences])

    def sleep(self) -> Future[None]:
        """Give the GPU's memory back: weights go to CPU memory, the KV cache is dropped."""
        return self.run(self._sleep)

    def wake(self) -> Future[None]:
        """Take the GPU's memory again."""
        return self.run(self._wake)

    def _start_update(self, llm: LLMEngine) -> None:
        self._held = True
        self._update_started = time.monotonic()
        self._call_workers(llm, "start_weight_update")

    def _finish_update(self, llm: LLMEngine, version: int) -> None:
        self._call_workers(llm, "finish_weight_update")
        # Running requests too, or their blocks, and with them the cache, stay those of the old
        # weights: vLLM resets nothing while one block is in use.
        if not llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM did not reset its prefix cache after a weight update")
        self._note_first_versions()
        self.version = version
        self._held = False
        POLICY_VERSION.set(version)
        UPDATE_SECONDS.observe(time.monotonic() - self._update_started)

    def _sleep(self, llm: LLMEngine) -> None:
        if self._in_flight:
            raise RuntimeError(f"{len(self._in_flight)} requests are running; sleeping loses them")
        llm.reset_prefix_cache()
        llm.sleep(level=1)

    def _wake(self, llm: LLMEngine) -> None:
        llm.wake_up()

    @staticmethod
    def _call_workers(llm: LLMEngine, method: str, *args: Any) -> None:
        llm.collective_rpc(method, args=args)


def _prompt_logprobs(output: RequestOutput, _version: int) -> LogProbs:
    if not output.prompt_logprobs or output.prompt_token_ids is None:
        raise RuntimeError("vLLM returned no log-probabilities of the prompt")
    # The first token has none.
    pairs = zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)
    values = [position[token].logprob for position, token in pairs if position is not None]
    return np.asarray(values, dtype=np.float32)
