"""The equations of the method in plain PyTorch, and DeepSpeed's ranks held to the steps they take.

For tests on CPU and on a GPU alike; a process that works on a GPU has no DS_ACCELERATOR.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.packing import unpack
from actors.records import Completion
from configs.schema import RunConfig
from learner import group as group_module
from learner.actor import LearnerRank
from learner.group import LearnerGroup
from learner.rank import Rank
from tests.learner.games import lsp_groups

RTOL = 1e-4
"""Most relative difference of a tensor, by its norm, in float32."""
EPSILON = 1e-3
"""Of AdamW on both sides. Its first update is g/(|g| + ε), so that at PyTorch's 1e-8 a gradient of
the size of its own rounding, 1e-7 here, moves a parameter by all of the learning rate either way,
and a few such elements are 1e-4 of a small tensor's change. At 1e-3 they move by 1e-4 of it."""


class RecordingRank(Rank):
    """Keeps the whole gradients that the optimiser is about to use, which has EPSILON."""

    def _apply(self):
        from deepspeed.utils import safe_get_full_grad

        self.gradients = {
            name: safe_get_full_grad(parameter).clone().cpu()
            for name, parameter in self.model.named_parameters()
        }
        return super()._apply()

    def _optimizer(self, scoring):
        optimizer = super()._optimizer(scoring)
        for group in optimizer.param_groups:
            group["eps"] = EPSILON
        return optimizer


class RecordingActor(LearnerRank):
    """A rank that can be asked for the gradients of its last step."""

    def start(self, rank, address):
        import learner.actor

        learner.actor.Rank = RecordingRank
        super().start(rank, address)

    def gradients(self):
        return self._rank.gradients


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


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def published(learner: LearnerGroup) -> dict[str, torch.Tensor]:
    refs = asyncio.run(learner.pack_weights(1 << 14, "float32"))
    return {name: t.clone() for buffer in ray.get(refs) for name, t in unpack(buffer)}


def started(config, path) -> LearnerGroup:
    learner = LearnerGroup(config, str(path))
    asyncio.run(learner.start())
    return learner


def hold_to_plain_pytorch(config: RunConfig, path: Path) -> None:
    """Take two steps with the learner of `config` and in plain PyTorch, and compare all tensors.

    `config` is `LSP` with the four queries of `lsp_groups`, and `path` the model's folder.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rate, clip = config.learner.learning_rate, config.learner.gradient_clip
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, eps=EPSILON, weight_decay=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_module, "LearnerRank", RecordingActor)
        learner = started(config, path)
    try:
        for iteration in range(2):
            groups = lsp_groups()
            loss = plain_loss(model, reference, groups, config)
            optimizer.zero_grad()
            loss.backward()
            result = asyncio.run(learner.step(groups, iteration))
            assert result.applied
            assert result.metrics["loss"] == pytest.approx(loss.item(), rel=RTOL, abs=1e-7)
            # The reference runs through the same kernels: at first the KL is exactly 0.
            assert (result.metrics["kl_solver"] == 0) == (iteration == 0)
            plain = {name: p.grad.clone() for name, p in model.named_parameters()}
            assert_alike(ray.get(learner._ranks[0].gradients.remote()), plain)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
            assert norm > clip  # it acts
            assert result.metrics["grad_norm"] == pytest.approx(float(norm), rel=RTOL)
            optimizer.step()
        after = published(learner)
        assert after.keys() == before.keys()  # a tied head is not sent twice
        changes = {name: p.detach() - before[name] for name, p in model.named_parameters()}
        assert_alike({name: after[name] - before[name] for name in changes}, changes)
    finally:
        learner.stop()


def assert_alike(ours: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> None:
    """Hold each tensor to RTOL."""
    assert ours.keys() == plain.keys()
    for name, tensor in plain.items():
        assert (ours[name] - tensor).norm() < RTOL * tensor.norm(), name
