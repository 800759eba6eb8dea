"""The learner on real DeepSpeed ranks in real Ray actors, against plain PyTorch."""

from __future__ import annotations

import asyncio
import math
import os
import signal

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.packing import unpack
from actors.records import Completion
from cluster.missing import lacking_ranks
from configs.errors import UserError
from learner import group as group_module
from learner.actor import LearnerRank
from learner.errors import LearnerError
from learner.group import LearnerGroup
from learner.rank import Rank
from tests.learner.games import LSP, completion, group, run_config

RTOL = 1e-4
RTOL_SMALL = 2e-3
"""For the change of a single tensor: Adam divides a gradient by its own size, so that in a small
tensor the last bits of one gradient near zero show. All parameters together keep to RTOL."""


class RecordingRank(Rank):
    """Keeps the whole gradients that the optimiser is about to use."""

    def _apply(self):
        from deepspeed.utils import safe_get_full_grad

        self.gradients = {
            name: safe_get_full_grad(parameter).clone()
            for name, parameter in self.model.named_parameters()
        }
        return super()._apply()


class RecordingActor(LearnerRank):
    """A rank that can be asked for the gradients of its last step."""

    def start(self, rank, address):
        import learner.actor

        learner.actor.Rank = RecordingRank
        super().start(rank, address)

    def gradients(self):
        return self._rank.gradients


def lsp_groups():
    """Three groups of unequal lengths, one with an answer longer than a micro-batch."""
    groups = [
        group([1, 0], seed=1, verdicts=[6, 4]),
        group([1, 1], seed=2, verdicts=[7, None]),
        group([0, 0], seed=3, verdicts=[0, 3], asked=False),
    ]
    rng = np.random.default_rng(9)
    long = group([0, 1], seed=4, verdicts=[2, 2])
    answers = (completion(rng, 90), long.answers[1])
    return [*groups, type(long)(long.query, answers, long.scores)]


def plain_logprobs(model, completion: Completion, temperature: float) -> torch.Tensor:
    tokens = np.concatenate([completion.prompt_token_ids, completion.token_ids])
    tokens = torch.tensor(tokens, dtype=torch.long)
    logits = model(tokens[None]).logits[0, :-1] / temperature
    picked = logits.log_softmax(-1).gather(-1, tokens[1:, None]).squeeze(-1)
    return picked[-len(completion.token_ids) :]


def plain_loss(model, reference, groups, config) -> torch.Tensor:
    """The equations of the method, one sequence at a time, no batch and no chunk."""
    n, g = len(groups), config.answers
    beta, alpha = config.learner.kl.coefficient, config.challenger.alpha
    reward, asked = [], []
    for item in groups:
        quality = np.array([np.nan if v.score is None else v.score for v in item.scores.verdicts])
        quality = np.where(np.isnan(quality), np.nanmean(quality), quality)
        r = 2.0 * item.scores.parts["solved"]
        reward.append(r + 0.5 * quality)
        asked.append(-r.mean() + 0.5 * quality.mean())
    mean = np.mean([a for a, x in zip(asked, groups, strict=True) if x.query.from_challenger])
    loss = torch.zeros(())

    def term(completion, advantage, temperature):
        logp = plain_logprobs(model, completion, temperature)
        with torch.no_grad():
            gap = logp - plain_logprobs(reference, completion, temperature)
        kl = 0.5 * (logp - logp.detach() + gap).square().sum()
        return (logp.sum() - logp.sum().detach()).exp() * advantage - beta * kl

    for i, item in enumerate(groups):
        for j, answer in enumerate(item.answers):
            advantage = reward[i][j] - reward[i].mean()
            loss = loss - term(answer, advantage, 0.7) / (n * g) / 20
        if item.query.completion is not None:
            loss = loss - alpha * term(item.query.completion, asked[i] - mean, 1.0) / n / 20
    return loss


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def published(learner: LearnerGroup) -> dict[str, torch.Tensor]:
    refs = asyncio.run(learner.pack_weights(1 << 14, "float32"))
    return {name: t.clone() for buffer in ray.get(refs) for name, t in unpack(buffer)}


def started(config, path) -> LearnerGroup:
    learner = LearnerGroup(config, str(path))
    asyncio.run(learner.start())
    return learner


@pytest.mark.parametrize(
    ("stage", "tied", "clip", "more"),
    [
        (0, True, 0.0, {}),
        (1, True, 0.3, {"gradient_checkpointing": True}),
        (2, False, 0.3, {}),
        (3, False, 0.0, {}),
        (3, True, 0.3, {"gradient_checkpointing": True}),  # as the presets of Llama-3.2 have it
    ],
)
def test_two_ranks_equal_plain_pytorch(
    ray_session, tiny_model, monkeypatch, stage, tied, clip, more
):
    monkeypatch.setattr(group_module, "LearnerRank", RecordingActor)
    path = tiny_model(tied)
    settings = {"ranks": 2, "zero_stage": stage, "gradient_clip": clip, "logprob_chunk": 16} | more
    config = run_config(path, **LSP, learner=settings, queries=4)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    learner = started(config, path)
    try:
        for iteration in range(2):
            groups = lsp_groups()
            loss = plain_loss(model, reference, groups, config)
            optimizer.zero_grad()
            loss.backward()
            result = asyncio.run(learner.step(groups, iteration))
            assert result.applied
            assert result.metrics["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-7)
            # The reference runs through the same kernels: at first the KL is exactly 0.
            assert (result.metrics["kl_solver"] == 0) == (iteration == 0)
            gradients = ray.get(learner._ranks[0].gradients.remote())
            assert gradients.keys() == before.keys()
            plain = {name: p.grad.clone() for name, p in model.named_parameters()}
            for name, gradient in gradients.items():
                assert relative(gradient, plain[name]) < RTOL, name
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
            assert result.metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
            optimizer.step()
        after = published(learner)
        assert after.keys() == before.keys()  # a tied head is not sent twice
        changes = {name: p.detach() - before[name] for name, p in model.named_parameters()}
        ours = {name: after[name] - before[name] for name in changes}
        assert relative(flat(ours), flat(changes)) < RTOL
        for name, change in changes.items():
            assert relative(ours[name], change) < RTOL_SMALL, name
    finally:
        learner.stop()


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
def test_a_loss_that_is_not_finite_changes_nothing(sharded):
    asyncio.run(sharded.step(two_groups(), 0))
    before, steps = all_checksums(sharded), sharded.steps
    bad = two_groups()
    # Finite rewards, whose advantages overflow float32.
    bad[1].scores.parts["solved"][:] = [1e40, -1e40]
    result = asyncio.run(sharded.step(bad, 1))
    assert not result.applied
    assert result.bad_groups == [1]
    assert result.metrics["bad_rows"] >= 1
    assert all_checksums(sharded) == before
    assert sharded.steps == steps
    assert asyncio.run(sharded.step(two_groups(), 1)).applied
    assert all_checksums(sharded) != before


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
