"""Micro-batches: nothing cut, nothing lost, as many on one rank as on another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.batching import PADDING_ROW, Row, merged, padding_share, split
from learner.logprobs import ScoringModel
from learner.losses import LossInputs, LossSettings, row_losses
from tests.learner.games import completion


def rows(lengths):
    rng = np.random.default_rng(0)
    return [Row(i, completion(rng, n), i % 2, 1.0, 0.5, 1.0 + i) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [16, 64, 10_000])
def test_every_row_is_there_once_and_whole(ranks, budget):
    given = rows([3, 30, 1, 7, 7, 12, 2])
    per_rank = split(given, ranks, budget)
    assert len({len(batches) for batches in per_rank}) == 1
    seen = {}
    for batch in (b for batches in per_rank for b in batches):
        for b, row_id in enumerate(batch.row_ids.tolist()):
            if row_id == PADDING_ROW:
                assert batch.coefficients_B[b] == 0
                continue
            assert row_id not in seen
            seen[row_id] = (batch, b)
        # Only a row that is too long by itself exceeds the budget.
        assert batch.tokens_BL.size <= budget or len(batch.row_ids) == 1
    assert sorted(seen) == list(range(len(given)))
    for row in given:
        batch, b = seen[row.row_id]
        c = row.completion
        tokens = np.concatenate([c.prompt_token_ids, c.token_ids])
        np.testing.assert_array_equal(batch.tokens_BL[b, : row.length], tokens)
        assert not batch.tokens_BL[b, row.length :].any()
        # The positions that predict the completion, and no others.
        np.testing.assert_array_equal(batch.tokens_BL[b, 1:][batch.mask_BT[b]], c.token_ids)
        assert batch.mask_BT[b].nonzero()[0][0] == len(c.prompt_token_ids) - 1
        assert batch.advantages_B[b] == row.advantage


def test_sorting_keeps_padding_small():
    per_rank = split(rows([40, 1] * 8), 1, 100)
    assert padding_share(per_rank) < 0.1


def test_the_split_is_deterministic():
    given = rows([5, 5, 5, 9, 2])
    first, second = split(given, 2, 30), split(list(reversed(given)), 2, 30)
    for a, b in zip(first, second, strict=True):
        assert [m.row_ids.tolist() for m in a] == [m.row_ids.tolist() for m in b]


def test_a_rank_gets_real_work_before_padding():
    per_rank = split(rows([4, 4, 4, 4]), 2, 10_000)
    assert all(PADDING_ROW not in b.row_ids for batches in per_rank for b in batches)
    # Fewer rows than ranks: padding is all that is left.
    alone = split(rows([4]), 2, 10_000)
    assert [b.row_ids.tolist() for batches in alone for b in batches] == [[0], [PADDING_ROW]]
    assert alone[1][0].coefficients_B.tolist() == [0.0]
    assert padding_share(alone) == pytest.approx(0.5)


def test_engine_log_probabilities_stand_beside_their_tokens():
    rng = np.random.default_rng(0)
    values = np.array([-0.5, -0.25, -1.0], dtype=np.float32)
    row = Row(0, completion(rng, 3, logprobs=values), 0, 1.0)
    ((batch,),) = split([row], 1, 100)
    np.testing.assert_array_equal(batch.engine_BT[0][batch.mask_BT[0]], values)
    assert batch.has_engine_B.tolist() == [True]


def total_gradient(scoring, reference, per_rank):
    """The gradient of Σ rows over all micro-batches of all ranks, flat."""
    settings = LossSettings(beta=0.1, estimator="k2", level="sequence", importance_cap=None)
    scoring.zero_grad()
    for batch in (batch for batches in per_rank for batch in batches):
        mask_BT = torch.tensor(batch.mask_BT)
        arguments = (torch.tensor(batch.tokens_BL), mask_BT, torch.tensor(batch.temperatures_B))
        with torch.no_grad():
            reference_BT, _ = reference(*arguments)
        logprobs_BT, _ = scoring(*arguments)
        inputs = LossInputs(
            logprobs_BT=logprobs_BT,
            reference_BT=reference_BT,
            engine_BT=torch.tensor(batch.engine_BT),
            mask_BT=mask_BT,
            has_engine_B=torch.tensor(batch.has_engine_B),
            advantages_B=torch.tensor(batch.advantages_B),
            coefficients_B=torch.tensor(batch.coefficients_B),
            counts_B=torch.tensor(batch.counts_B),
            roles_B=torch.tensor(batch.roles_B),
        )
        row_losses(inputs, settings).sum().backward()
    return torch.cat([p.grad.flatten() for p in scoring.parameters()])


def test_micro_batching_changes_nothing(tiny_model):
    models = [AutoModelForCausalLM.from_pretrained(tiny_model(tied)) for tied in (False, False)]
    scoring, reference = (ScoringModel(model.float(), 7) for model in models)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.05)
    given = rows([3, 30, 1, 7, 7, 12, 2])
    whole = total_gradient(scoring, reference, split(given, 1, 10_000))
    for ranks, budget in ((1, 16), (1, 64), (3, 40), (8, 10_000)):
        parts = total_gradient(scoring, reference, split(given, ranks, budget))
        assert (parts - whole).norm() < 1e-5 * whole.norm()


def test_completions_that_are_the_same_are_trained_as_one(tiny_model):
    models = [AutoModelForCausalLM.from_pretrained(tiny_model(tied)) for tied in (False, False)]
    scoring, reference = (ScoringModel(model.float(), 7) for model in models)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.05)
    one, other, third = rows([5, 5, 9])
    same = [replace(one, row_id=i, advantage=a) for i, a in enumerate([1.0, -3.0, 0.5])]
    given = [*same, replace(other, row_id=3), replace(third, row_id=4)]
    as_one = merged(("a group", row) for row in given)
    assert [(row.row_id, row.count) for row in as_one] == [(0, 3), (3, 1), (4, 1)]
    apart = total_gradient(scoring, reference, split(given, 1, 10_000))
    together = total_gradient(scoring, reference, split(as_one, 1, 10_000))
    assert (together - apart).norm() < 1e-5 * apart.norm()


def test_completions_of_two_groups_or_of_other_log_probabilities_stay_apart():
    rng = np.random.default_rng(0)
    row = Row(0, completion(rng, 3, logprobs=np.zeros(3, np.float32)), 0, 1.0)
    told = replace(row.completion, logprobs=np.full(3, -1.0, np.float32))
    given = [("a", row), ("b", row), ("a", replace(row, completion=told)), ("a", row)]
    assert [one.count for one in merged(given)] == [2, 1, 1]
