"""The loss against hand-worked numbers and its gradient against the formula; the KL trap."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from learner.losses import (
    CHALLENGER,
    SOLVER,
    LossInputs,
    LossSettings,
    importance_weights,
    kl_estimate,
    loss_sums,
    row_coefficient,
    row_losses,
    sequence_ratio,
    summarise,
)

OFF = LossSettings(beta=0.0, estimator="k2", level="token", importance_cap=None)


def inputs(logprobs_BT, **fields):
    logprobs_BT = torch.as_tensor(logprobs_BT, dtype=torch.float64)
    rows = logprobs_BT.shape[0]
    defaults = {
        "logprobs_BT": logprobs_BT,
        "reference_BT": None,
        "engine_BT": torch.zeros_like(logprobs_BT),
        "mask_BT": torch.ones_like(logprobs_BT, dtype=torch.bool),
        "has_engine_B": torch.zeros(rows, dtype=torch.bool),
        "advantages_B": torch.ones(rows, dtype=torch.float64),
        "coefficients_B": torch.ones(rows, dtype=torch.float64),
        "counts_B": torch.ones(rows, dtype=torch.long),
        "roles_B": torch.zeros(rows, dtype=torch.long),
    }
    return LossInputs(**(defaults | fields))


def test_loss_by_hand():
    # Row 0: a Solver's answer of 2 tokens; row 1: a query of 1 token. β·k2 per token.
    batch = inputs(
        [[-1.0, -2.0], [-3.0, 0.0]],
        reference_BT=torch.tensor([[-1.5, -1.0], [-2.0, -9.0]], dtype=torch.float64),
        mask_BT=torch.tensor([[True, True], [True, False]]),
        advantages_B=torch.tensor([2.0, -1.0], dtype=torch.float64),
        coefficients_B=torch.tensor([0.25, 0.1], dtype=torch.float64),
    )
    settings = LossSettings(beta=0.2, estimator="k2", level="token", importance_cap=None)
    # 0.25·(−2 + 0.2·½(0.25 + 1)) and 0.1·(1 + 0.2·½·1)
    expected = torch.tensor([0.25 * (-2 + 0.125), 0.1 * 1.1], dtype=torch.float64)
    torch.testing.assert_close(row_losses(batch, settings), expected)
    sequence = LossSettings(beta=0.2, estimator="k2", level="sequence", importance_cap=None)
    expected[0] = 0.25 * (-2 + 0.2 * 0.5 * 0.25)
    torch.testing.assert_close(row_losses(batch, sequence), expected)


@pytest.mark.parametrize(
    ("estimator", "value"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 1 + 0.5)]
)
def test_estimators_by_hand(estimator, value):
    log_ratio = torch.tensor([[0.5, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, False]])
    for level in ("token", "sequence"):
        assert kl_estimate(log_ratio, mask, estimator, level).item() == pytest.approx(value)


def test_gradient_of_the_loss_is_the_formula():
    torch.manual_seed(0)
    logprobs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(3, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]], dtype=torch.bool)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    coefficients = torch.tensor([0.5, 0.1, 0.2], dtype=torch.float64)
    batch = inputs(
        logprobs,
        reference_BT=reference,
        mask_BT=mask,
        advantages_B=advantages,
        coefficients_B=coefficients,
    )
    settings = LossSettings(beta=0.3, estimator="k2", level="token", importance_cap=None)
    row_losses(batch, settings).sum().backward()
    # ∂L/∂log π_t = c·(−A + β·l_t) on the mask
    expected = coefficients[:, None] * (
        -advantages[:, None] + 0.3 * (logprobs.detach() - reference)
    )
    torch.testing.assert_close(logprobs.grad, expected * mask)


def test_ratio_is_one_with_the_exact_gradient():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    ratio = sequence_ratio(logprobs, torch.tensor([[1.0, 0.5]]))
    assert ratio.item() == 1.0
    ratio.backward()
    assert logprobs.grad.tolist() == [[1.0, 0.5]]


def test_importance_weights_are_truncated_and_have_no_gradient():
    learner = torch.tensor([[0.0, math.log(1.5), math.log(5.0), 3.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    weights = importance_weights(learner, torch.zeros(1, 4), mask, 2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.5, 2.0, 1.0]]))
    assert not weights.requires_grad


def test_importance_weights_act_only_when_stale():
    logprobs = torch.tensor([[math.log(0.5), math.log(0.25)]], dtype=torch.float64)
    engine = torch.tensor([[math.log(0.25), math.log(0.5)]], dtype=torch.float64)
    for cap, expected in ((None, [-1.0, -1.0]), (1.5, [-1.5, -0.5])):
        leaf = logprobs.clone().requires_grad_()
        batch = inputs(leaf, engine_BT=engine, has_engine_B=torch.tensor([True]))
        row_losses(batch, LossSettings(0.0, "k2", "token", cap)).sum().backward()
        assert leaf.grad[0].tolist() == pytest.approx(expected)


def test_stale_rows_without_log_probabilities_are_refused():
    with pytest.raises(ValueError, match="log-probabilities"):
        row_losses(inputs([[-1.0]]), LossSettings(0.0, "k2", "token", 2.0))


def test_coefficients_of_the_equation():
    shape = {"queries": 4, "answers": 8, "alpha": 0.3, "constant": 100}
    constant = {"aggregation": "constant", **shape}
    assert row_coefficient(SOLVER, 7, **constant) == pytest.approx(1 / (4 * 8 * 100))
    assert row_coefficient(CHALLENGER, 7, **constant) == pytest.approx(0.3 / (4 * 100))
    mean = {"aggregation": "token_mean", **shape}
    assert row_coefficient(SOLVER, 7, **mean) == pytest.approx(1 / (4 * 8 * 7))
    assert row_coefficient(CHALLENGER, 7, **mean) == pytest.approx(0.3 / (4 * 7))


def test_metrics_count_no_padding():
    batch = inputs(
        [[-1.0, -2.0], [-1.0, -1.0], [-5.0, -5.0]],
        reference_BT=torch.full((3, 2), -1.0, dtype=torch.float64),
        engine_BT=torch.tensor([[-1.0, -1.5], [0, 0], [0, 0]], dtype=torch.float64),
        has_engine_B=torch.tensor([True, False, True]),
        mask_BT=torch.tensor([[True, True], [True, False], [True, True]]),
        coefficients_B=torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64),
        roles_B=torch.tensor([SOLVER, CHALLENGER, SOLVER]),
    )
    losses = row_losses(batch, OFF)
    sums = loss_sums(losses, batch, torch.ones(3, 2), cap=2.0)
    metrics = summarise({key: float(value) for key, value in sums.items()})
    assert metrics["tokens_trained"] == 3
    assert metrics["entropy"] == 1
    assert metrics["loss"] == pytest.approx(-1)
    assert metrics["loss_solver"] == pytest.approx(-0.5)
    assert metrics["kl_solver"] == pytest.approx((math.e - 2) / 2)
    assert metrics["kl_challenger"] == 0
    assert metrics["engine_logprob_difference"] == pytest.approx(0.25)
    assert metrics["importance_weight_mean"] == pytest.approx((1 + math.exp(-0.5)) / 2)


# --- the KL trap (docs/equations.md), on a two-step softmax enumerated exactly in float64 ---

VOCAB = 3
SEQUENCES = list(itertools.product(range(VOCAB), repeat=2))


class TwoSteps:
    """All sequences of two tokens under a policy whose second step depends on the first."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
        self.second = torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64)

    def train(self) -> TwoSteps:
        self.first.requires_grad_()
        self.second.requires_grad_()
        return self

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [self.first, self.second]

    def logprobs_ST(self) -> torch.Tensor:
        first, second = self.first.log_softmax(-1), self.second.log_softmax(-1)
        return torch.stack([torch.stack([first[a], second[a, b]]) for a, b in SEQUENCES])


def flat_gradient(value, policy):
    parts = torch.autograd.grad(value, policy.parameters, allow_unused=True)
    filled = [
        torch.zeros_like(p) if g is None else g
        for g, p in zip(parts, policy.parameters, strict=True)
    ]
    return torch.cat([part.flatten() for part in filled])


@pytest.fixture
def game():
    policy, reference = TwoSteps(0).train(), TwoSteps(1)
    return policy, policy.logprobs_ST(), reference.logprobs_ST()


def kl_gradient(policy, p_ST, q_ST):
    """∇KL(p‖q) of the sequence distributions, by its definition."""
    p_S, q_S = p_ST.sum(1), q_ST.sum(1)
    return flat_gradient((p_S.exp() * (p_S - q_S)).sum(), policy)


def expected_gradient(policy, logprobs_ST, reference_ST, estimator, level):
    """E_π[∇ KLterm], with the expectation held fixed: what a loss on sampled rows has."""
    mask = torch.ones_like(logprobs_ST, dtype=torch.bool)
    batch = inputs(
        logprobs_ST,
        reference_BT=reference_ST,
        mask_BT=mask,
        advantages_B=torch.zeros(len(SEQUENCES), dtype=torch.float64),
        coefficients_B=logprobs_ST.sum(1).exp().detach(),
    )
    settings = LossSettings(1.0, estimator, level, None)
    return flat_gradient(row_losses(batch, settings).sum(), policy)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_k1_in_the_loss_does_nothing(game, level):
    policy, logprobs_ST, reference_ST = game
    gradient = expected_gradient(policy, logprobs_ST, reference_ST, "k1", level)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-14, rtol=0)


def test_k2_in_the_loss_is_the_gradient_of_kl(game):
    policy, logprobs_ST, reference_ST = game
    got = expected_gradient(policy, logprobs_ST, reference_ST, "k2", "sequence")
    right = kl_gradient(policy, policy.logprobs_ST(), reference_ST)
    assert right.norm() > 0.1
    torch.testing.assert_close(got, right, rtol=1e-12, atol=1e-14)


def test_k3_in_the_loss_is_the_gradient_of_the_other_direction(game):
    policy, logprobs_ST, reference_ST = game
    got = expected_gradient(policy, logprobs_ST, reference_ST, "k3", "sequence")
    right = kl_gradient(policy, reference_ST, policy.logprobs_ST())
    torch.testing.assert_close(got, right, rtol=1e-12, atol=1e-14)
    forward = kl_gradient(policy, policy.logprobs_ST(), reference_ST)
    assert (right - forward).norm() > 0.1


def test_token_level_leaves_out_later_steps(game):
    policy, logprobs_ST, reference_ST = game
    token = expected_gradient(policy, logprobs_ST, reference_ST, "k2", "token")
    right = kl_gradient(policy, policy.logprobs_ST(), reference_ST)
    first, second = slice(0, VOCAB), slice(VOCAB, None)
    torch.testing.assert_close(token[second], right[second], rtol=1e-12, atol=1e-14)
    assert (token[first] - right[first]).norm() > 1e-2


def reward_gradient(policy, reference_ST, estimator, size):
    """The gradient over all groups of `size` samples, each with its probability, where the reward
    is −KLterm of the sequence and the baseline the group's mean."""
    logprobs_ST = policy.logprobs_ST()
    log_ratio_ST = (logprobs_ST - reference_ST).detach()
    mask_ST = torch.ones_like(log_ratio_ST, dtype=torch.bool)
    kl_S = kl_estimate(log_ratio_ST, mask_ST, estimator, "sequence")
    probabilities_S = logprobs_ST.sum(1).exp().detach()
    total = torch.zeros((), dtype=torch.float64)
    for samples in itertools.product(range(len(SEQUENCES)), repeat=size):
        picked = torch.tensor(samples)
        rewards_G = -kl_S[picked]
        batch = inputs(
            logprobs_ST[picked],
            advantages_B=rewards_G - rewards_G.mean(),
            coefficients_B=torch.full((size,), 1 / size, dtype=torch.float64),
        )
        total = total + probabilities_S[picked].prod() * row_losses(batch, OFF).sum()
    return flat_gradient(total, policy)


@pytest.mark.parametrize("size", [2, 3])
def test_k1_in_the_reward_is_the_gradient_of_kl_scaled(game, size):
    policy, _, reference_ST = game
    got = reward_gradient(policy, reference_ST, "k1", size)
    right = kl_gradient(policy, policy.logprobs_ST(), reference_ST)
    torch.testing.assert_close(got, right * (1 - 1 / size), rtol=1e-10, atol=1e-13)


def test_k2_and_k3_in_the_reward_leave_out_their_own_gradient(game):
    """∇E[f] is E[∇f] + E[f ∇log π]; a reward has the second, and E[∇f] is what the loss has."""
    policy, _, reference_ST = game
    forward = kl_gradient(policy, policy.logprobs_ST(), reference_ST)
    backward = kl_gradient(policy, reference_ST, policy.logprobs_ST())
    k3 = reward_gradient(policy, reference_ST, "k3", 2)
    torch.testing.assert_close(k3, (forward - backward) / 2, rtol=1e-10, atol=1e-13)
    log_ratio_S = (policy.logprobs_ST() - reference_ST).sum(1)
    expected_k2 = (policy.logprobs_ST().sum(1).exp() * log_ratio_S.square() / 2).sum()
    k2 = reward_gradient(policy, reference_ST, "k2", 2)
    wanted = (flat_gradient(expected_k2, policy) - forward) / 2
    torch.testing.assert_close(k2, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("estimator", "power"), [("k1", 1), ("k2", 2), ("k3", 2)])
def test_near_the_reference_k1_alone_pulls_back_from_the_reward(estimator, power):
    """At a tenth of the distance the gradient of KL is a tenth; that of the others a hundredth."""
    reference, away = TwoSteps(1), TwoSteps(2)
    norms = []
    for distance in (1e-3, 1e-4):
        policy = TwoSteps(1)
        for own, other in zip(policy.parameters, away.parameters, strict=True):
            own += distance * other
        gradient = reward_gradient(policy.train(), reference.logprobs_ST(), estimator, 2)
        norms.append(float(gradient.norm()))
    assert norms[0] / norms[1] == pytest.approx(10**power, rel=0.02)


def test_a_row_counts_as_often_as_the_completions_it_stands_for():
    told = {
        "reference_BT": torch.tensor([[-0.5, -0.5]] * 3, dtype=torch.float64),
        "engine_BT": torch.tensor([[-1.2, -2.4]] * 3, dtype=torch.float64),
        "has_engine_B": torch.ones(3, dtype=torch.bool),
    }
    apart = inputs([[-1.0, -2.0]] * 2 + [[-0.1, -4.0]], **told)
    first = [0, 2]
    fields = {key: value[first] for key, value in told.items()}
    as_one = inputs(
        [[-1.0, -2.0], [-0.1, -4.0]],
        **fields,
        counts_B=torch.tensor([2, 1]),
        coefficients_B=torch.tensor([2.0, 1.0], dtype=torch.float64),
    )
    entropy_BT = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]])
    settings = LossSettings(beta=0.2, estimator="k2", level="token", importance_cap=2.0)
    sums = loss_sums(row_losses(apart, settings), apart, entropy_BT, cap=2.0)
    also = loss_sums(row_losses(as_one, settings), as_one, entropy_BT[first], cap=2.0)
    assert {key: float(value) for key, value in also.items()} == pytest.approx(
        {key: float(value) for key, value in sums.items()}
    )
