"""The learner on real DeepSpeed ranks in real Ray actors: what a step, a fault and a save leave."""

from __future__ import annotations

import asyncio
import os
import signal

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.records import Completion
from cluster.missing import lacking_ranks
from configs.errors import UserError
from learner.errors import LearnerError
from learner.group import LearnerGroup
from tests.learner.games import LSP, group, lsp_groups, run_config
from tests.learner.plain import flat, plain_logprobs, published, started


def test_bfloat16_takes_about_the_step_of_float32_from_a_kl_of_zero(ray_session, tiny_model):
    """As the presets train: bfloat16 under ZeRO-2, float32 master weights."""
    changes, metrics = {}, {}
    for dtype in ("float32", "bfloat16"):
        settings = {"zero_stage": 2, "dtype": dtype, "gradient_checkpointing": True}
        learner = started(
            run_config(tiny_model(True), **LSP, learner=settings, queries=4), tiny_model(True)
        )
        try:
            before = flat(published(learner))
            result = asyncio.run(learner.step(lsp_groups(), 0))
            assert result.applied
            changes[dtype], metrics[dtype] = flat(published(learner)) - before, result.metrics
        finally:
            learner.stop()
    assert metrics["bfloat16"]["kl_solver"] == metrics["bfloat16"]["kl_challenger"] == 0.0
    assert metrics["bfloat16"]["loss"] == pytest.approx(metrics["float32"]["loss"], rel=0.05)
    assert torch.cosine_similarity(changes["bfloat16"], changes["float32"], dim=0) > 0.9


def test_a_rank_that_dies_is_the_loss_of_the_learner_whatever_the_others_say(
    ray_session, tiny_model
):
    config = run_config(tiny_model(True), **LSP, learner={"ranks": 2}, queries=4)
    learner = started(config, tiny_model(True))

    async def lose_one() -> None:
        pids = [rank["pid"] for rank in await learner.describe()]
        # Held, so that it dies in mid-step, however short a step is.
        os.kill(pids[1], signal.SIGSTOP)
        step = asyncio.ensure_future(learner.step(lsp_groups(), 0))
        await asyncio.sleep(0.5)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(LearnerError, match=r"step 0: (a rank is lost|ranks \[1\] are lost)"):
            await step
        # Who else waited for it, and failed of that, can find out.
        fault = RuntimeError("no actor serves")
        with pytest.raises(LearnerError, match=r"ranks \[1\] are lost: no actor serves"):
            await learner.check(fault)

    try:
        asyncio.run(learner.check(RuntimeError("nobody is lost")))
        asyncio.run(lose_one())
    finally:
        learner.stop()


@pytest.fixture(scope="module")
def sharded(ray_session, tiny_model):
    """Two ZeRO-3 ranks, shared by the tests below; each steps it further."""
    settings = {"ranks": 2, "zero_stage": 3, "gradient_clip": 0.0}
    config = run_config(tiny_model(False), learner=settings, queries=2)
    learner = started(config, tiny_model(False))
    yield learner
    learner.stop()


def two_groups(seed=0):
    return [group([1, 0], seed=seed + 1), group([0.2, 0.7], seed=seed + 2)]


def all_checksums(learner):
    names = list(asyncio.run(learner.tensor_sizes()))
    return asyncio.run(learner.checksums(names, "float32"))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("stage", [0, 3])  # at 0, as in the quickstart, the check is our own
def test_a_loss_that_is_not_finite_leaves_no_trace(ray_session, tiny_model, tmp_path, stage):
    # Three micro-batches on each rank, the last of them bad.
    settings = {"ranks": 2, "zero_stage": stage, "micro_batch_tokens": 32}
    config = run_config(tiny_model(False), **LSP, learner=settings, queries=4)
    learner = started(config, tiny_model(False))
    try:
        asyncio.run(learner.step(lsp_groups(), 0))
        asyncio.run(learner.save(tmp_path / "state"))
        before, steps = all_checksums(learner), learner.steps
        asyncio.run(learner.step(lsp_groups(), 1))
        undisturbed = all_checksums(learner)
        assert undisturbed != before
        asyncio.run(learner.load(tmp_path / "state"))
        bad = lsp_groups()
        # Finite rewards, whose advantages overflow float32.
        bad[1].scores.parts["solved"][:] = [1e40, -1e40]
        result = asyncio.run(learner.step(bad, 1))
        assert not result.applied
        assert result.bad_groups == [1]
        assert result.metrics["bad_rows"] >= 1
        assert all_checksums(learner) == before
        assert learner.steps == steps
        assert asyncio.run(learner.step(lsp_groups(), 1)).applied
        assert all_checksums(learner) == undisturbed
    finally:
        learner.stop()


def test_continuing_from_a_checkpoint_equals_never_having_stopped(
    sharded, tiny_model, tmp_path, ray_session
):
    asyncio.run(sharded.save(tmp_path / "state"))
    for i in range(2):
        asyncio.run(sharded.step(two_groups(10 * i), 5 + i))
    uninterrupted = all_checksums(sharded)
    fresh = started(sharded.config, tiny_model(False))
    try:
        asyncio.run(fresh.load(tmp_path / "state"))
        for i in range(2):
            asyncio.run(fresh.step(two_groups(10 * i), 5 + i))
        assert all_checksums(fresh) == uninterrupted
        assert fresh.steps == sharded.steps
    finally:
        fresh.stop()


def test_a_checkpoint_of_other_ranks_is_refused_with_the_remedy(sharded, tmp_path):
    asyncio.run(sharded.save(tmp_path / "state"))
    other = LearnerGroup(run_config(learner={"ranks": 1, "zero_stage": 3}), "unused")
    with pytest.raises(UserError, match=r"put learner\.ranks: 2 back"):
        asyncio.run(other.load(tmp_path / "state"))


def test_the_files_that_ranks_wrote_are_named_with_their_sizes(sharded, tmp_path):
    written = asyncio.run(sharded.save(tmp_path / "state"))
    written |= asyncio.run(sharded.export(tmp_path / "hf"))
    assert written == {path: path.stat().st_size for path in written}
    names = {path.name for path in written}
    assert {"model.safetensors", "tokenizer.json"} <= names
    # Both ranks' shares of the optimiser's state.
    assert len([name for name in names if name.endswith("optim_states.pt")]) == 2


def test_export_loads_in_transformers_and_matches_the_probe(sharded, tmp_path):
    asyncio.run(sharded.export(tmp_path / "hf"))
    tokens = np.arange(20, 40, dtype=np.int32)
    probe = asyncio.run(sharded.probe(tokens))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    whole = Completion(tokens[:1], tokens[1:], "", "stop", 0, 0, 0)
    with torch.no_grad():
        right = plain_logprobs(model, whole, 1.0).numpy()
    np.testing.assert_allclose(probe, right, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").chat_template
    sent = published(sharded)
    for name, parameter in model.named_parameters():
        assert torch.equal(sent[name], parameter), name


def test_a_wait_that_is_too_long_names_what_it_awaits(sharded, monkeypatch):
    tight = sharded.config.learner.model_copy(update={"step_deadline_s": 0.001})
    monkeypatch.setattr(sharded, "config", sharded.config.model_copy(update={"learner": tight}))
    with pytest.raises(LearnerError, match=r"step 9 took longer .* ranks \[0, 1\]"):
        asyncio.run(sharded.step(two_groups(), 9))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"gpus": 1, "ranks": 2},
            "each of its 2 ranks asks for 1 CPU and 1 GPU on one node, and no"
            " node has more than 0 GPUs",
        ),
        (
            {"labels": {"selfplay-group": "learner"}},
            "it asks for 1 CPU and the label"
            " selfplay-group=learner on one node, and no node has the label selfplay-group=learner",
        ),
    ],
)
def test_a_learner_without_a_place_says_what_is_missing_long_before_it_gives_up(
    ray_session, caplog, asked, sentence
):
    settings = {"placement_deadline_s": 0.2, "start_deadline_s": 3.0} | asked
    learner = LearnerGroup(run_config(learner=settings), "unused", lacking_ranks)

    async def wait() -> None:
        placing = asyncio.ensure_future(learner.place())
        while learner.unplaced is None:
            assert not placing.done()
            await asyncio.sleep(0.05)
        assert learner.unplaced == f"the learner has no place: {sentence}"
        with pytest.raises(LearnerError, match=rf"start_deadline_s.* has no place: .*{sentence}"):
            await placing

    try:
        asyncio.run(wait())
    finally:
        learner.stop()
    assert caplog.text.count(sentence) == 1


def test_a_ranks_own_timeout_is_not_the_ranks_silence(sharded):
    async def wait():
        refs = [sleepless.remote(), sleepless.remote()]
        with pytest.raises(TimeoutError, match="b has not answered"):
            await sharded._all(refs, "sending version 2 through nccl")

    asyncio.run(wait())


@ray.remote(num_cpus=0)
def sleepless() -> None:
    raise TimeoutError("publish: b has not answered")


def test_kl_in_the_reward_lowers_what_moved_away(ray_session, tiny_model):
    kl = {"place": "reward", "estimator": "k1", "coefficient": 0.5}
    config = run_config(
        tiny_model(True),
        queries=2,
        learner={"kl": kl, "learning_rate": 0.01},
        rewards={
            "parts": [{"kind": "verifier", "name": "solved", "function": "a:b"}],
            "quality": None,
            "standardise": True,
        },
    )
    learner = started(config, tiny_model(True))
    try:
        first = asyncio.run(learner.step(two_groups(), 0))
        values = np.array([1, 0, 0.2, 0.7])
        standard = (values - values.mean()) / values.std()
        # At first the KL is 0 and the rewards are the standardised R.
        np.testing.assert_allclose(np.concatenate(first.rewards_solver), standard, atol=1e-6)
        second = asyncio.run(learner.step(two_groups(), 1))
        change = np.concatenate(second.rewards_solver) - standard
        assert np.abs(change).max() > 0.05
        assert learner._moments.count == 8
    finally:
        learner.stop()
