"""A vLLM engine in this process, stepped by one thread that serves many callers at once.

Everything that touches vLLM happens on the stepping thread: it is built there (a thread has its
own CUDA device and OpenMP team), and between two steps the thread takes in what callers asked
for. Invariants: every accepted request ends in its caller's future, as a result or as the
exception that stopped the engine; requests of many callers share each step; `run` sees the engine
between two steps, never inside one.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from actors.member import EngineDiedError
from actors.records import (
    NO_SEED,
    Completion,
    GenerationRequest,
    LogProbs,
    Sampling,
    TokenIds,
)
from actors.vllm_start import (
    check_model,
    engine_settings,
    set_environment,
    start_vllm,
    transfer_settings,
)
from configs.errors import UserError
from configs.fleets import EngineConfig

if TYPE_CHECKING:
    from vllm import PoolingRequestOutput, RequestOutput, SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

T = TypeVar("T")
Asked = tuple[TokenIds, Any, Callable[[Any, int], Any]]
"""A prompt, vLLM's parameters for it, and how (vLLM's output, version of the first token) becomes
a result."""


@dataclass(slots=True, eq=False)
class _Batch:
    """What one caller awaits: a result per request, and the future they go to together."""

    results: list[Any]
    missing: int
    future: Future[list[Any]]


@dataclass(slots=True, eq=False)
class _InFlight:
    """A request inside vLLM: its place in the batch, and how its output becomes a result."""

    batch: _Batch
    index: int
    finish: Callable[[Any, int], Any]
    first_version: int | None = None
    """The version that wrote its first token, once a weight update has come after it."""


@dataclass(slots=True, eq=False)
class _Job:
    """Something to be done between two steps."""

    work: Callable[[], None]
    future: Future[Any]
    fatal: bool = field(kw_only=True)
    """Whether the engine is unusable where `work` fails."""


class Engine:
    """One vLLM engine with continuous batching over all its callers.

    vLLM keeps the state of a step per process, so a process may have one engine at work at a time.
    `version` is the policy version of its weights: 0 unless a subclass updates them.
    """

    def __init__(
        self,
        model_path: str,
        config: EngineConfig,
        *,
        section: str,
        seed: int = 0,
        revision: str | None = None,
        trust_remote_code: bool = False,
        runner: Literal["generate", "pooling"] = "generate",
        transfer_backend: str | None = None,
        sleep_mode: bool = False,
    ) -> None:
        """Start the engine and wait until it can serve.

        Args:
            model_path: Folder or hub id.
            config: The engine's settings.
            section: Where `config` stands in the run's configuration, for messages.
            seed: Of the engine's own random numbers (requests without a seed).
            revision: Of the hub repository.
            trust_remote_code: Run model code that comes with the checkpoint.
            runner: "pooling" for a classifier, which serves `classify` instead of `submit`.
            transfer_backend: How weights arrive, one of vLLM's transfer engines or our
                "object_store"; None for a frozen model.
            sleep_mode: Whether the GPU's memory can be given back for a while.

        Raises:
            UserError: The model is not there, or vLLM refuses it with these settings.
        """
        set_environment()
        check_model(model_path, revision, trust_remote_code, section)
        self.version = 0
        self._section = section
        self._context = config.context
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._in_flight: dict[str, _InFlight] = {}
        self._ids = itertools.count()
        self._held = False
        self._lock = threading.Lock()
        self._failure: EngineDiedError | None = None
        arguments = {
            "model": model_path,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "seed": seed,
            "runner": runner,
            "enable_sleep_mode": sleep_mode,
            **engine_settings(config),
            **transfer_settings(transfer_backend),
        }
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._main, args=(arguments, started), name=f"{section}-engine", daemon=True
        )
        self._thread.start()
        started.result()

    def submit(self, requests: Sequence[GenerationRequest]) -> Future[list[Completion]]:
        """Sample every request; the future holds the completions in the requests' order.

        Raises:
            UserError: A prompt leaves no room for an answer in the engine's context.
        """
        for request in requests:
            self._check_room(len(request.prompt_token_ids))
        return self._enqueue(
            [
                (r.prompt_token_ids, _sampling_params(r), partial(self._completion, r))
                for r in requests
            ]
        )

    def classify(self, prompts: Sequence[TokenIds]) -> Future[list[npt.NDArray[np.float64]]]:
        """Return each prompt's raw label scores [labels] (`runner="pooling"` only).

        Raises:
            UserError: A prompt is longer than the engine's context.
        """
        from vllm import PoolingParams  # noqa: PLC0415 — vllm takes seconds to import

        for prompt in prompts:
            self._check_room(len(prompt) - 1)
        # vLLM would return the sigmoid of the score.
        params = PoolingParams(task="classify", use_activation=False)
        return self._enqueue([(prompt, params.clone(), _label_scores) for prompt in prompts])

    def run(self, work: Callable[[LLMEngine], T], *, fatal: bool = False) -> Future[T]:
        """Call `work` with vLLM's engine on the stepping thread, between two steps.

        An exception of `work` goes to the future; with `fatal` it also stops the engine.
        """
        future: Future[T] = Future()
        self._add_job(_Job(lambda: future.set_result(work(self._llm)), future, fatal=fatal))
        return future

    def check_alive(self) -> None:
        """Raise EngineDiedError where the engine has failed or was closed."""
        with self._lock:
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        """Stop the engine; whatever is still pending fails."""
        self._jobs.put(None)
        self._thread.join()

    def _check_room(self, prompt_tokens: int) -> None:
        if prompt_tokens >= self._context:
            raise UserError(
                f"a prompt of {prompt_tokens} tokens leaves no room in {self._section}.context"
                f" {self._context}: raise {self._section}.context or shorten the prompt"
            )

    def _completion(
        self, request: GenerationRequest, output: RequestOutput, first_version: int
    ) -> Completion:
        sampled = output.outputs[0]
        if sampled.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a request with {sampled.finish_reason!r}")
        token_ids = np.asarray(sampled.token_ids, dtype=np.int32)
        return Completion(
            prompt_token_ids=request.prompt_token_ids,
            token_ids=token_ids,
            text=sampled.text if request.sampling.stop else self._decode(token_ids),
            finish_reason=sampled.finish_reason,
            version_min=first_version,
            version_max=self.version,
            seed=NO_SEED if request.seed is None else request.seed,
            logprobs=_sampled_logprobs(output) if request.sampling.logprobs else None,
        )

    def _decode(self, token_ids: TokenIds) -> str:
        # The end token is among the ids, since it is trained on, and not in the text.
        return self._tokenizer.decode(
            token_ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _enqueue(self, asked: list[Asked]) -> Future[list[Any]]:
        batch = _Batch([None] * len(asked), len(asked), Future())
        self._add_job(_Job(lambda: self._admit(batch, asked), batch.future, fatal=False))
        return batch.future

    def _add_job(self, job: _Job) -> None:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._jobs.put(job)

    # From here on: the stepping thread.

    def _main(self, arguments: dict[str, Any], started: Future[None]) -> None:
        try:
            self._llm = start_vllm(arguments, self._section)
            self._tokenizer: Any = self._llm.get_tokenizer()
        except BaseException as error:  # noqa: BLE001 — goes to whoever constructs the engine
            started.set_exception(error)
            return
        started.set_result(None)
        stopped = EngineDiedError(f"the {self._section} engine was closed")
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 — goes to everyone who waits
            stopped = error if isinstance(error, EngineDiedError) else self._died(error)
        self._fail_pending(stopped)
        self._llm.model_executor.shutdown()

    def _died(self, error: Exception) -> EngineDiedError:
        died = EngineDiedError(f"the {self._section} engine failed: {error!r}")
        died.__cause__ = error
        return died

    def _serve(self) -> None:
        """Alternate between callers' jobs and steps until `close`."""
        while True:
            stepping = bool(self._in_flight) and not self._held
            try:
                job = self._jobs.get(block=not stepping)
            except queue.Empty:
                self._step()
                continue
            if job is None:
                return
            self._do(job)

    def _do(self, job: _Job) -> None:
        # A caller that gave up cannot be told; past this point nobody can cancel.
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            job.work()
        except Exception as error:
            told = self._died(error) if job.fatal else error
            job.future.set_exception(told)
            if job.fatal:
                raise told from error

    def _admit(self, batch: _Batch, asked: list[Asked]) -> None:
        from vllm.inputs import TokensPrompt  # noqa: PLC0415 — vllm takes seconds to import

        if not asked:
            batch.future.set_result([])
        admitted: list[str] = []
        try:
            for index, (token_ids, params, finish) in enumerate(asked):
                request_id = str(next(self._ids))
                prompt = TokensPrompt(prompt_token_ids=token_ids.tolist())
                self._llm.add_request(request_id, prompt, params)
                self._in_flight[request_id] = _InFlight(batch, index, finish)
                admitted.append(request_id)
        except Exception:
            self._abort(admitted)
            raise

    def _abort(self, request_ids: list[str]) -> None:
        self._llm.abort_request(request_ids)
        for request_id in request_ids:
            del self._in_flight[request_id]

    def _step(self) -> None:
        for output in self._llm.step():
            if output.finished:
                # Only then: should its output be unreadable, its caller still waits among them.
                self._finish(self._in_flight[output.request_id], output)
                del self._in_flight[output.request_id]

    def _finish(self, request: _InFlight, output: RequestOutput | PoolingRequestOutput) -> None:
        first_version = self.version if request.first_version is None else request.first_version
        batch = request.batch
        batch.results[request.index] = request.finish(output, first_version)
        batch.missing -= 1
        if batch.missing == 0:
            batch.future.set_result(batch.results)

    def _note_first_versions(self) -> None:
        """Before `version` changes: fix the first version of requests that have tokens already."""
        for state in self._llm.output_processor.request_states.values():
            request = self._in_flight[state.external_req_id]
            started = state.detokenizer is not None and state.detokenizer.num_output_tokens() > 0
            if started and request.first_version is None:
                request.first_version = self.version

    def _fail_pending(self, error: EngineDiedError) -> None:
        with self._lock:
            self._failure = error
        pending = {id(r.batch.future): r.batch.future for r in self._in_flight.values()}
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None and job.future.set_running_or_notify_cancel():
                pending[id(job.future)] = job.future
        self._in_flight.clear()
        for future in pending.values():
            future.set_exception(error)


def _sampling_params(request: GenerationRequest) -> SamplingParams:
    from vllm import SamplingParams  # noqa: PLC0415 — vllm takes seconds to import
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

    sampling: Sampling = request.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop),
        seed=request.seed,
        logprobs=0 if sampling.logprobs else None,
        # Stop texts are searched in vLLM's own text; otherwise decoding once at the end is cheaper.
        detokenize=bool(sampling.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _sampled_logprobs(output: RequestOutput) -> LogProbs:
    sampled = output.outputs[0]
    if sampled.logprobs is None:
        raise RuntimeError("vLLM returned no log-probabilities although they were asked for")
    values = [
        position[token].logprob
        for position, token in zip(sampled.logprobs, sampled.token_ids, strict=True)
        if position is not None
    ]
    return np.asarray(values, dtype=np.float32)


def _label_scores(output: PoolingRequestOutput, _version: int) -> npt.NDArray[np.float64]:
    return output.outputs.data.to(torch.float64).numpy()
