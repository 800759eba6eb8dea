"""New weights in a running engine: right after every update, and never silently stale."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from actors.member import EngineDiedError
from actors.packing import checksum, pack
from actors.policy import PolicyEngine
from actors.records import Completion, Sampling
from tests.actors.helpers import (
    GREEDY,
    LONG_PROMPT,
    SAMPLED,
    answer_logprobs,
    ask,
    model_logprobs,
    perturb,
    send_weights,
    start_policy_engine,
    update,
)

TOLERANCE = 1e-4
Updated = tuple[PolicyEngine, LlamaForCausalLM]


@pytest.fixture(scope="module")
def policy(tiny_model: Callable[[bool], Path]) -> Iterator[Updated]:
    """An engine with tied embeddings, and the model that trains for it."""
    engine = start_policy_engine(tiny_model(True))
    yield engine, LlamaForCausalLM.from_pretrained(tiny_model(True))
    engine.close()


def error_of(made: Completion, model: LlamaForCausalLM) -> float:
    """Largest difference between a completion's log-probabilities and a model's."""
    assert made.logprobs is not None
    return float(np.abs(made.logprobs - answer_logprobs(model, made)).max())


def test_engine_and_model_agree_after_three_updates(updated: Updated):
    engine, model = updated
    for version in (1, 2, 3):
        perturb(model, version)
        update(engine, model, version)
        assert engine.version == version
        (greedy,) = engine.submit(ask(GREEDY, None)).result()
        with torch.no_grad():
            whole = np.concatenate([greedy.prompt_token_ids, greedy.token_ids]).astype(np.int64)
            best_T = model(torch.from_numpy(whole)[None]).logits[0].argmax(-1)
        assert best_T[len(greedy.prompt_token_ids) - 1 : -1].tolist() == greedy.token_ids.tolist()
        for made in [greedy, *engine.submit(ask(SAMPLED, 1, 2)).result()]:
            assert (made.version_min, made.version_max) == (version, version)
            if made is not greedy:
                assert error_of(made, model) < TOLERANCE


def test_checksums_are_the_models_where_the_layout_permits(updated: Updated):
    engine, model = updated
    perturb(model, 4)
    update(engine, model, 4)
    parameters = dict(model.named_parameters())
    checksums = engine.checksums([*parameters, "no.such.weight"]).result()
    assert "model.embed_tokens.weight" in checksums
    assert "model.norm.weight" in checksums
    assert ("lm_head.weight" in checksums) == ("lm_head.weight" in parameters)
    # On CPU the linear layers exist only in a packed form.
    assert "model.layers.0.mlp.down_proj.weight" not in checksums
    assert checksums == {name: checksum(parameters[name]) for name in checksums}
    parameters["model.norm.weight"].data[0] += 1e-6
    assert checksums["model.norm.weight"] != checksum(parameters["model.norm.weight"])


def test_probe_is_the_models(policy: Updated):
    engine, model = policy
    perturb(model, 5)
    update(engine, model, engine.version + 1)
    first, second = engine.probe([LONG_PROMPT, LONG_PROMPT[:9]]).result()
    assert np.abs(first - model_logprobs(model, LONG_PROMPT)).max() < TOLERANCE
    assert np.abs(second - model_logprobs(model, LONG_PROMPT[:9])).max() < TOLERANCE


def test_no_stale_prefix_cache_after_an_update(policy: Updated):
    """Answers to a long prompt that was cached under the old weights are the new weights' own."""
    engine, model = policy
    engine.submit(ask(SAMPLED, 1, 2, prompt=LONG_PROMPT)).result()
    perturb(model, 6)
    update(engine, model, engine.version + 1)
    for made in engine.submit(ask(SAMPLED, 1, 2, prompt=LONG_PROMPT)).result():
        assert error_of(made, model) < TOLERANCE


def test_a_planted_stale_prefix_cache_shows_in_the_answers_and_not_in_the_probe(
    policy: Updated, monkeypatch: pytest.MonkeyPatch
):
    """The test above can fail; and the probe reads the weights, not the cache."""
    engine, model = policy
    engine.submit(ask(SAMPLED, 1, prompt=LONG_PROMPT)).result()
    perturb(model, 7)
    with monkeypatch.context() as patch:
        engine.run(lambda llm: patch.setattr(llm, "reset_prefix_cache", lambda **_: True)).result()
        update(engine, model, engine.version + 1)
    (stale,) = engine.submit(ask(SAMPLED, 1, prompt=LONG_PROMPT)).result()
    assert error_of(stale, model) > 0.01
    (probed,) = engine.probe([LONG_PROMPT]).result()
    assert np.abs(probed - model_logprobs(model, LONG_PROMPT)).max() < TOLERANCE
    engine.run(lambda llm: llm.reset_prefix_cache()).result()


def test_an_answer_across_an_update_says_so_and_goes_on_with_the_new_weights(policy: Updated):
    engine, model = policy
    old = LlamaForCausalLM(model.config)
    old.load_state_dict(model.state_dict())
    version = engine.version
    crossing = engine.submit(ask(Sampling(max_tokens=300, logprobs=True), 1, 2, 3))
    before = tokens_so_far(engine)
    perturb(model, 8)
    update(engine, model, version + 1)
    completions = crossing.result()
    crossed = [made for made in completions if made.finish_reason == "length"]
    assert crossed
    for made in crossed:
        assert (made.version_min, made.version_max) == (version, version + 1)
        assert made.logprobs is not None
        old_T, new_T = answer_logprobs(old, made), answer_logprobs(model, made)
        assert np.abs(made.logprobs[:before] - old_T[:before]).max() < TOLERANCE
        switch = int(np.argmax(np.abs(made.logprobs - old_T) > TOLERANCE))
        assert switch >= before
        # All that follows is the new weights' own, the cached prefix computed anew.
        assert np.abs(made.logprobs[switch:] - new_T[switch:]).max() < TOLERANCE


def tokens_so_far(engine: PolicyEngine, at_least: int = 5) -> int:
    """Wait until every running request has some tokens; return how many the slowest has."""

    def count(llm) -> int:
        states = llm.output_processor.request_states.values()
        return min((s.detokenizer.num_output_tokens() for s in states), default=0)

    while (tokens := engine.run(count).result()) < at_least:
        time.sleep(0.001)
    return tokens


def test_no_step_between_start_and_finish_and_what_comes_then_waits(policy: Updated):
    engine, model = policy
    version = engine.version
    running = engine.submit(ask(Sampling(max_tokens=300), 1))
    tokens_so_far(engine)
    perturb(model, 9)
    send_weights(engine, model)
    held = tokens_so_far(engine)
    # Asked for while the engine is held: it starts with the new weights.
    queued = engine.submit(ask(SAMPLED, 2))
    time.sleep(0.2)
    assert engine.run(tokens_of_first).result() == held
    assert not queued.done()
    assert not running.done()
    engine.finish_update(version + 1).result()
    (started_before,), (started_after,) = running.result(), queued.result()
    assert (started_before.version_min, started_before.version_max) == (version, version + 1)
    assert (started_after.version_min, started_after.version_max) == (version + 1, version + 1)
    assert error_of(started_after, model) < TOLERANCE


def tokens_of_first(llm) -> int:
    states = list(llm.output_processor.request_states.values())
    return states[0].detokenizer.num_output_tokens()


def test_an_update_that_leaves_a_tensor_out_stops_the_engine(tiny_model):
    engine = start_policy_engine(tiny_model(False))
    model = LlamaForCausalLM.from_pretrained(tiny_model(False))
    weights = [pair for pair in model.named_parameters() if pair[0] != "lm_head.weight"]
    try:
        waiting = engine.submit(ask(Sampling(max_tokens=300), 1))
        engine.start_update().result()
        for buffer in pack(weights, 60_000):
            engine.load_update(dict(buffer)).result()
        with pytest.raises(EngineDiedError, match=r"left out \['lm_head.weight'\]"):
            engine.finish_update(1).result()
        with pytest.raises(EngineDiedError, match="left out"):
            waiting.result(timeout=10)
        with pytest.raises(EngineDiedError, match="left out"):
            engine.submit(ask(SAMPLED, 1))
    finally:
        engine.close()
