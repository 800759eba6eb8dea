"""The loss of Language Self-Play as a sum over completions, and its KL estimators.

    L = −(1/NG) Σ_ij [ratio_ij · A_ij − β·KL_ij] − (α/N) Σ_i [ratio_i · A_i − β·KL_i]

Each completion is one row with a coefficient c of its own (`row_coefficient`), so that
L = Σ_rows c · (−ratio·A + β·KL), whatever micro-batch or rank a row falls into. The ratio
π/sg π of the whole sequence has the value 1 and the exact policy gradient.

Pure torch. Axes: B rows, T predicted positions (the token at position t + 1 of the row).
Tensors over T are zero outside the completion, where `mask_BT` is False.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

Estimator = Literal["k1", "k2", "k3"]
Level = Literal["token", "sequence"]
Aggregation = Literal["constant", "token_mean"]

SOLVER, CHALLENGER = 0, 1
ROLES = {"solver": SOLVER, "challenger": CHALLENGER}


@dataclass(frozen=True)
class LossSettings:
    """β and the shape of the KL term; `importance_cap` None where generation is on-policy."""

    beta: float
    estimator: Estimator
    level: Level
    importance_cap: float | None


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One micro-batch. Log-probabilities are after temperature, of the learner, the frozen
    reference (None at β = 0) and the engine that sampled (zero where it reported none)."""

    logprobs_BT: torch.Tensor
    reference_BT: torch.Tensor | None
    engine_BT: torch.Tensor
    mask_BT: torch.Tensor  # bool
    has_engine_B: torch.Tensor  # bool: the row carries the engine's log-probabilities
    advantages_B: torch.Tensor
    coefficients_B: torch.Tensor  # 0 for a padding row
    counts_B: torch.Tensor  # completions that the row stands for
    roles_B: torch.Tensor  # SOLVER or CHALLENGER


def row_coefficient(
    role: int,
    length: int,
    *,
    queries: int,
    answers: int,
    alpha: float,
    constant: int,
    aggregation: Aggregation,
) -> float:
    """Return c of one completion of `length` tokens.

    1/(N·G) for the Solver and α/N for the Challenger, over `constant` (the sequence sum up to the
    learning rate, so it must be the same for both) or over the row's own length (`token_mean`).
    """
    share = 1.0 / (queries * answers) if role == SOLVER else alpha / queries
    return share / (constant if aggregation == "constant" else length)


def sequence_ratio(logprobs_BT: torch.Tensor, weights_BT: torch.Tensor) -> torch.Tensor:
    """Return π/sg π of whole sequences [B]: value 1, gradient Σ_t w_t ∇ log π_t."""
    return ((logprobs_BT - logprobs_BT.detach()) * weights_BT).sum(1).exp()


def importance_weights(
    logprobs_BT: torch.Tensor, engine_BT: torch.Tensor, mask_BT: torch.Tensor, cap: float
) -> torch.Tensor:
    """Return min(π_learner/π_engine, cap) per token, without gradient, 1 outside the mask."""
    gap_BT = (logprobs_BT.detach() - engine_BT).masked_fill(~mask_BT, 0.0)
    return gap_BT.exp().clamp(max=cap)


def kl_estimate(
    log_ratio_BT: torch.Tensor, mask_BT: torch.Tensor, estimator: Estimator, level: Level
) -> torch.Tensor:
    """Return the KL term of each sequence [B], with l_t = log π_t − log π_ref,t.

    level token: Σ_t f(l_t); sequence: f(Σ_t l_t). f is k1 = l, k2 = l²/2 or
    k3 = exp(−l) − 1 + l (Schulman 2020). Differentiated on-policy at sequence level, k1 has the
    expected gradient 0, k2 has ∇KL(π‖π_ref), k3 has ∇KL(π_ref‖π).
    """
    log_ratio_BT = log_ratio_BT.masked_fill(~mask_BT, 0.0)
    if level == "sequence":
        return _estimate(log_ratio_BT.sum(1), estimator)
    return _estimate(log_ratio_BT, estimator).sum(1)


def _estimate(log_ratio: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    return torch.expm1(-log_ratio) + log_ratio


def row_losses(inputs: LossInputs, settings: LossSettings) -> torch.Tensor:
    """Return each row's share of L [B]: c · (−ratio·A + β·KL).

    Truncated importance weights act on the policy-gradient term, as in TRL; the KL term is
    left unweighted.
    """
    weights_BT = _weights(inputs, settings)
    gain_B = sequence_ratio(inputs.logprobs_BT, weights_BT) * inputs.advantages_B
    if inputs.reference_BT is None or settings.beta == 0:
        return -inputs.coefficients_B * gain_B
    log_ratio_BT = inputs.logprobs_BT - inputs.reference_BT
    kl_B = kl_estimate(log_ratio_BT, inputs.mask_BT, settings.estimator, settings.level)
    return inputs.coefficients_B * (settings.beta * kl_B - gain_B)


def _weights(inputs: LossInputs, settings: LossSettings) -> torch.Tensor:
    mask_BT = inputs.mask_BT
    if settings.importance_cap is None:
        return mask_BT.to(inputs.logprobs_BT.dtype)
    if not bool((inputs.has_engine_B | (inputs.coefficients_B == 0)).all()):
        raise ValueError("stale completions need the engine's log-probabilities")
    weights_BT = importance_weights(
        inputs.logprobs_BT, inputs.engine_BT, mask_BT, settings.importance_cap
    )
    return weights_BT * mask_BT


@torch.no_grad()
def loss_sums(
    row_losses_B: torch.Tensor, inputs: LossInputs, entropy_BT: torch.Tensor, cap: float
) -> dict[str, torch.Tensor]:
    """Return sums over a micro-batch that add up over micro-batches and ranks.

    Padding rows (coefficient 0) count nowhere. `summarise` turns the totals into metrics.
    """
    counts_B = inputs.counts_B * (inputs.coefficients_B != 0)
    counts_BT = inputs.mask_BT * counts_B[:, None]
    sums = {"tokens": counts_BT.sum(), "entropy": (entropy_BT * counts_BT).sum()}
    for name, role in ROLES.items():
        rows_B = (counts_B > 0) & (inputs.roles_B == role)
        sums[f"loss_{name}"] = row_losses_B[rows_B].sum()
        sums[f"tokens_{name}"] = counts_BT[rows_B].sum()
        if inputs.reference_BT is not None:
            log_ratio_BT = inputs.logprobs_BT - inputs.reference_BT
            kl_B = kl_estimate(log_ratio_BT, inputs.mask_BT, "k3", "token")
            sums[f"kl_{name}"] = (kl_B * counts_B)[rows_B].sum()
    return sums | _engine_sums(inputs, counts_BT * inputs.has_engine_B[:, None], cap)


def _engine_sums(
    inputs: LossInputs, counts_BT: torch.Tensor, cap: float
) -> dict[str, torch.Tensor]:
    gap_BT = (inputs.logprobs_BT - inputs.engine_BT).masked_fill(counts_BT == 0, 0.0)
    ratio_BT = gap_BT.exp()
    return {
        "engine_tokens": counts_BT.sum(),
        "engine_gap": (gap_BT.abs() * counts_BT).sum(),
        "importance": (ratio_BT.clamp(max=cap) * counts_BT).sum(),
        "importance_clipped": ((ratio_BT > cap) * counts_BT).sum(),
    }


def summarise(sums: dict[str, float]) -> dict[str, float]:
    """Turn the totals of `loss_sums` into metrics.

    `loss_challenger` holds α already: loss = loss_solver + loss_challenger. `kl_*` is the mean
    per token of k3, which is never negative and varies little, whatever estimator is trained
    with, and NaN where nothing of the role was trained. `entropy` is the mean per token in nats,
    after temperature. The engine's metrics are absent where it reported no log-probabilities.
    """
    metrics = {
        "loss": sums["loss_solver"] + sums["loss_challenger"],
        "entropy": sums["entropy"] / max(sums["tokens"], 1),
        "tokens_trained": sums["tokens"],
    }
    for name in ROLES:
        metrics[f"loss_{name}"] = sums[f"loss_{name}"]
        if f"kl_{name}" in sums:
            tokens_of_role = sums[f"tokens_{name}"]
            metrics[f"kl_{name}"] = (
                sums[f"kl_{name}"] / tokens_of_role if tokens_of_role else math.nan
            )
    if tokens := sums["engine_tokens"]:
        metrics["importance_weight_mean"] = sums["importance"] / tokens
        metrics["importance_clipped_share"] = sums["importance_clipped"] / tokens
        metrics["engine_logprob_difference"] = sums["engine_gap"] / tokens
    return metrics
