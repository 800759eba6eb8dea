"""The engine on real vLLM: what it samples, what it reports of it, and whom it serves."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from actors.engine import Engine
from actors.member import EngineDiedError
from actors.policy import PolicyEngine
from actors.records import NO_SEED, Completion, Sampling
from configs.errors import UserError
from tests.actors.helpers import (
    GREEDY,
    PROMPT,
    SAMPLED,
    TINY_ENGINE,
    answer_logprobs,
    ask,
    start_policy_engine,
)

TOLERANCE = 1e-4


def token_lists(completions: list[Completion]) -> list[list[int]]:
    return [made.token_ids.tolist() for made in completions]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_models_after_temperature(
    engine: PolicyEngine, model: LlamaForCausalLM, temperature: float
):
    sampling = Sampling(temperature=temperature, max_tokens=24, logprobs=True)
    for made in engine.submit(ask(sampling, 1, 2, 3)).result():
        expected = answer_logprobs(model, made, temperature)
        assert made.logprobs is not None
        assert made.logprobs.dtype == np.float32
        assert np.abs(made.logprobs - expected).max() < TOLERANCE


def test_greedy_tokens_are_the_models(engine: PolicyEngine, model: LlamaForCausalLM):
    (made,) = engine.submit(ask(GREEDY, None)).result()
    whole = torch.from_numpy(np.concatenate([PROMPT, made.token_ids]).astype(np.int64))
    with torch.no_grad():
        best_T = model(whole[None]).logits[0].argmax(-1)
    assert best_T[len(PROMPT) - 1 : -1].tolist() == made.token_ids.tolist()


def test_a_completion_says_what_it_is(engine: PolicyEngine):
    made, unseeded = engine.submit(ask(Sampling(max_tokens=3), 7, None)).result()
    assert made.prompt_token_ids.tolist() == PROMPT.tolist()
    assert made.token_ids.dtype == np.int32
    assert (made.seed, unseeded.seed) == (7, NO_SEED)
    assert (made.version_min, made.version_max) == (0, 0)
    assert made.finish_reason == "length"
    assert made.logprobs is None


def test_seeds_decide_whatever_is_batched_with_them(engine: PolicyEngine):
    alone = [engine.submit(ask(SAMPLED, seed)).result()[0] for seed in range(4)]
    together = engine.submit(ask(SAMPLED, *range(4))).result()
    others = engine.submit(ask(SAMPLED, 11, 12, 13))
    in_company = engine.submit(ask(SAMPLED, 3, 2, 1, 0)).result()
    others.result()
    assert token_lists(together) == token_lists(alone)
    assert token_lists(in_company)[::-1] == token_lists(alone)
    assert len({tuple(ids) for ids in token_lists(alone)}) == 4


def test_another_engine_samples_the_same_under_the_same_seeds(engine: PolicyEngine, tiny_model):
    first = token_lists(engine.submit(ask(SAMPLED, *range(6))).result())
    second = start_policy_engine(tiny_model(True))
    try:
        # The share of a second engine: other neighbours, another order.
        part = token_lists(second.submit(ask(SAMPLED, 5, 3, 1)).result())
    finally:
        second.close()
    assert part == [first[5], first[3], first[1]]


def test_seeded_prompts_that_one_step_cannot_take_in(engine: PolicyEngine):
    """Sixteen long prompts, no prefix in common: on CPU, none may be cut between two steps."""
    generator = np.random.default_rng(0)
    prompts = generator.integers(10, 300, size=(16, 350), dtype=np.int32)
    requests = [ask(SAMPLED, seed, prompt=prompt)[0] for seed, prompt in enumerate(prompts)]
    assert len(engine.submit(requests).result()) == 16


def test_without_seeds_the_answers_to_one_prompt_differ(engine: PolicyEngine):
    answers = token_lists(engine.submit(ask(SAMPLED, None, None, None)).result())
    again = token_lists(engine.submit(ask(SAMPLED, None, None, None)).result())
    assert len({tuple(ids) for ids in answers + again}) == 6


def test_callers_share_the_engine(engine: PolicyEngine):
    """A short request that comes later is done while a long one still runs."""
    order: list[str] = []
    long = engine.submit(ask(Sampling(max_tokens=200), 1, 2))
    long.add_done_callback(lambda _: order.append("long"))
    short = engine.submit(ask(Sampling(max_tokens=2), 3))
    short.add_done_callback(lambda _: order.append("short"))
    wait([long, short])
    assert order == ["short", "long"]


def test_many_threads_get_their_own_answers(engine: PolicyEngine):
    expected = token_lists(engine.submit(ask(SAMPLED, *range(8))).result())
    got: dict[int, list[int]] = {}

    def call(seed: int) -> None:
        got[seed] = token_lists(engine.submit(ask(SAMPLED, seed)).result())[0]

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[seed] for seed in range(8)] == expected


def test_nothing_asked_is_nothing_answered(engine: PolicyEngine):
    assert engine.submit([]).result() == []


def end_token_answer(engine: PolicyEngine) -> Completion:
    """An answer that the model ended by itself."""
    made = engine.submit(ask(Sampling(temperature=2.0, max_tokens=300), *range(32))).result()
    return next(m for m in made if m.finish_reason == "stop")


def test_the_end_token_is_among_the_ids_and_not_in_the_text(engine: PolicyEngine):
    made = end_token_answer(engine)
    assert made.token_ids[-1] == 5
    assert "<|eot|>" not in made.text
    assert 5 not in made.token_ids[:-1]


def test_a_stop_text_ends_the_answer(engine: PolicyEngine):
    (free,) = engine.submit(ask(SAMPLED, 1)).result()
    stop = free.text[8:10]
    (made,) = engine.submit(ask(Sampling(max_tokens=24, stop=(stop,)), 1)).result()
    assert made.finish_reason == "stop"
    assert made.text == free.text[: free.text.index(stop)]
    # The ids are those that were sampled, the stop text's included.
    assert made.token_ids.tolist() == free.token_ids[: len(made.token_ids)].tolist()
    assert len(made.token_ids) < len(free.token_ids)


def test_a_prompt_without_room_for_an_answer_is_refused(engine: PolicyEngine):
    prompt = np.full(TINY_ENGINE.context, 20, dtype=np.int32)
    with pytest.raises(UserError, match=r"384 tokens leaves no room in rollout\.context 384"):
        engine.submit(ask(SAMPLED, 1, prompt=prompt))
    (made,) = engine.submit(ask(SAMPLED, 1, prompt=prompt[1:])).result()
    assert len(made.token_ids) == 1


def test_a_request_that_vllm_refuses_fails_alone(engine: PolicyEngine):
    from vllm.exceptions import VLLMValidationError

    foreign = np.array([10, 100_000], dtype=np.int32)
    good = engine.submit(ask(SAMPLED, 1))
    with pytest.raises((ValueError, VLLMValidationError), match="out of vocabulary"):
        engine.submit(ask(SAMPLED, 1) + ask(SAMPLED, 2, prompt=foreign)).result()
    assert len(good.result()) == 1
    assert len(engine.submit(ask(SAMPLED, 1)).result()) == 1


def test_an_error_between_steps_is_its_callers(engine: PolicyEngine):
    def fail(llm: object) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        engine.run(fail).result()
    assert len(engine.submit(ask(SAMPLED, 1)).result()) == 1


def test_an_error_in_a_step_reaches_everyone_who_waits(tiny_model, monkeypatch: pytest.MonkeyPatch):
    engine = start_policy_engine(tiny_model(True))

    def broken_step() -> None:
        raise MemoryError("no blocks left")

    try:
        engine.run(lambda llm: monkeypatch.setattr(llm, "step", broken_step)).result()
        waiting = [engine.submit(ask(SAMPLED, seed)) for seed in range(3)]
        for future in waiting:
            with pytest.raises(EngineDiedError, match="no blocks left"):
                future.result(timeout=10)
        with pytest.raises(EngineDiedError, match="rollout engine failed") as died:
            engine.submit(ask(SAMPLED, 1)).result()
        assert isinstance(died.value.__cause__, MemoryError)
    finally:
        engine.close()


def test_an_output_that_cannot_be_read_reaches_its_caller(
    tiny_model, monkeypatch: pytest.MonkeyPatch
):
    def unreadable(output: object) -> None:
        raise KeyError("token")

    monkeypatch.setattr("actors.engine._sampled_logprobs", unreadable)
    engine = start_policy_engine(tiny_model(True))
    try:
        with pytest.raises(EngineDiedError, match=r"KeyError\('token'\)"):
            engine.submit(ask(SAMPLED, 1)).result(timeout=10)
    finally:
        engine.close()


def test_a_closed_engine_fails_what_is_pending(tiny_model):
    engine = start_policy_engine(tiny_model(True))
    pending = engine.submit(ask(Sampling(max_tokens=300), 1))
    engine.close()
    with pytest.raises(EngineDiedError, match="was closed"):
        pending.result(timeout=10)
    with pytest.raises(EngineDiedError, match="was closed"):
        engine.submit(ask(SAMPLED, 1))


def test_a_classifier_returns_raw_scores(reward_model: Path):
    engine = Engine(str(reward_model), TINY_ENGINE, section="rewards.parts", runner="pooling")
    try:
        prompts = [PROMPT, PROMPT[:7], PROMPT[::-1].copy()]
        scores = engine.classify(prompts).result()
    finally:
        engine.close()
    model = LlamaForSequenceClassification.from_pretrained(reward_model)
    for prompt, score in zip(prompts, scores, strict=True):
        with torch.no_grad():
            expected = model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0]
        assert np.abs(score - expected.numpy()).max() < TOLERANCE


@pytest.mark.parametrize("path", ["/nowhere/model", "nobody/no-such-model"])
def test_a_model_that_is_not_there_is_named(path: str):
    with pytest.raises(UserError, match=f"rollout: no model at '{path}'"):
        Engine(path, TINY_ENGINE, section="rollout")


def test_settings_that_vllm_refuses_are_the_users_to_change(tiny_model):
    config = TINY_ENGINE.model_copy(update={"context": 4096})
    with pytest.raises(UserError, match=r"rollout: vLLM refuses .*max_model_len"):
        Engine(str(tiny_model(True)), config, section="rollout")
