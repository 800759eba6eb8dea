"""Checks between the sections of a configuration; each failure names the keys and the remedy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from configs.rewards import REFERENCE_VERIFIERS, VERIFIER_RESTART_S, VerifierPart

if TYPE_CHECKING:
    from configs.schema import RunConfig

TRAINABLE_QUERIES = 2
"""Fewest queries of one iteration that the Challenger learns anything from."""


def check_agreement(config: RunConfig) -> None:
    """Raise ValueError with one clear sentence where two sections contradict each other."""
    _check_algorithm(config)
    _check_mix(config)
    _check_safety(config)
    _check_references(config)
    _check_learnability(config)
    _check_steering(config)
    _check_sampling(config)
    _check_fleets(config)
    _check_verifier_deadlines(config)
    _check_context(config)
    _check_offload(config)


def _check_algorithm(config: RunConfig) -> None:
    quality, source, form = config.rewards.quality, config.source.kind, config.challenger.reward
    if config.algorithm == "grpo":
        _demand(source == "dataset", "algorithm grpo learns from data: set source.kind to dataset")
        _demand(
            quality is None, "algorithm grpo has no quality reward: set rewards.quality to null"
        )
        return
    _demand(
        source != "dataset",
        f"algorithm {config.algorithm} plays: set source.kind to challenger or mix",
    )
    if config.algorithm == "lsp_zero":
        _demand(
            quality is None, "algorithm lsp_zero has no quality reward: set rewards.quality to null"
        )
        _demand(
            form != "quality", "algorithm lsp_zero has no V_Q: set challenger.reward to minus_v"
        )
    if config.algorithm == "lsp":
        _demand(
            quality is not None, "algorithm lsp needs rewards.quality; lsp_zero plays without it"
        )
        _demand(
            form != "minus_v",
            "algorithm lsp rewards the Challenger with quality or learnability;"
            " minus_v is lsp_zero's",
        )


def _check_mix(config: RunConfig) -> None:
    """The Challenger's baseline is the mean over its queries: a query alone has advantage 0."""
    if config.source.kind != "mix" or config.challenger.alpha == 0:
        return
    # The data set gives an iteration at most its share of the queries, rounded up. A share is a
    # decimal fraction: 5 × (1 − 0.6) leaves two.
    own = 1 - config.source.dataset_share
    left = round(config.queries * own, 9)
    _demand(
        left >= TRAINABLE_QUERIES,
        "source.kind mix with challenger.alpha above 0 needs two Challenger queries in every"
        f" iteration, and queries {config.queries} × (1 − source.dataset_share"
        f" {config.source.dataset_share:g}) is {left:g}: set queries to"
        f" {math.ceil(round(TRAINABLE_QUERIES / own, 9))} or more, lower source.dataset_share, or"
        " set challenger.alpha to 0",
    )


def _check_safety(config: RunConfig) -> None:
    _demand(
        config.gate.safety is None or config.source.kind != "dataset",
        "gate.safety judges the Challenger's queries, and with source.kind dataset there are none:"
        " set gate.safety to null",
    )


def _check_references(config: RunConfig) -> None:
    for part in config.verifier_parts:
        needs = part.needs_reference
        if needs is None:
            needs = part.function in REFERENCE_VERIFIERS
        if not needs:
            continue
        _demand(
            config.source.kind == "dataset",
            f"rewards.parts {part.name!r} ({part.function}) compares with a reference answer, and a"
            " Challenger's query has none: use a verifier that reads the answer off the query, a"
            " preference model, or source.kind dataset",
        )
        dataset = config.source.dataset
        _demand(
            dataset is not None and dataset.reference_field is not None,
            f"rewards.parts {part.name!r} ({part.function}) needs source.dataset.reference_field",
        )


def _check_learnability(config: RunConfig) -> None:
    wanted = config.challenger.learnability_part
    if config.challenger.reward != "learnability":
        _demand(
            wanted is None, "challenger.learnability_part goes with challenger.reward learnability"
        )
        return
    verifiers = [part.name for part in config.verifier_parts]
    _demand(
        wanted in verifiers,
        f"challenger.learnability_part must name a verifier of rewards.parts, one of {verifiers};"
        f" it is {wanted!r}",
    )


def _check_steering(config: RunConfig) -> None:
    challenger = config.challenger
    _demand(
        challenger.quality == "sum" or challenger.reward == "learnability",
        "challenger.quality gate multiplies by V_Q/7, and −V is largest where V_Q is 0 then: set"
        " challenger.reward to learnability, or challenger.quality to sum",
    )
    _demand(
        challenger.quality == "sum" or config.rewards.quality is not None,
        "challenger.quality gate needs rewards.quality",
    )
    best = config.checkpoint.best or ""
    _demand(
        not best.startswith("development") or config.development is not None,
        f"checkpoint.best is {best}, and the section development is not there",
    )


def _check_sampling(config: RunConfig) -> None:
    for role, sampling in config.trained_sampling.items():
        _demand(
            sampling.temperature > 0,
            f"{role}.sampling.temperature is 0: all samples of a prompt are the same, and there is"
            " nothing to learn from their differences; set it above 0",
        )


def _check_fleets(config: RunConfig) -> None:
    backend, on_gpu = config.publish.backend, config.rollout.gpus > 0
    _demand(
        backend not in ("nccl", "ipc") or on_gpu,
        f"publish.backend {backend} moves weights between GPUs and rollout.gpus is 0: set"
        " publish.backend to auto or object_store",
    )
    _demand(
        backend != "object_store" or not on_gpu,
        "publish.backend object_store is for engines on CPU: with rollout.gpus set it to auto",
    )
    _demand(
        backend != "ipc" or config.colocate,
        "publish.backend ipc is for a learner and engines on one GPU: set colocate to true, or"
        " publish.backend to nccl",
    )
    _demand(
        not config.colocate or config.staleness == 0,
        "colocate shares the GPU in turns, so staleness must be 0",
    )
    _demand(
        not config.colocate or config.publish.backend in ("auto", "ipc"),
        "colocate publishes through ipc: set publish.backend to auto or ipc",
    )
    _demand(
        not config.colocate or config.rollout.autoscale is None,
        "colocate is for one engine beside the learner, and rollout.autoscale would add others: set"
        " rollout.autoscale to null, or colocate to false",
    )
    shares = {
        "learner.ranks": config.learner.ranks,
        "rollout.replicas": config.rollout.replicas,
        "rollout.tensor_parallel": config.rollout.tensor_parallel,
    }
    for key, share in shares.items():
        # Nothing puts rank i beside engine i, and ipc reaches only an engine on its own GPU.
        _demand(
            not config.colocate or share == 1,
            f"colocate is for one learner rank and one engine on one GPU, and {key} is {share}: set"
            f" {key} to 1, or colocate to false",
        )


def _check_verifier_deadlines(config: RunConfig) -> None:
    """Calls queue up in a verifier's actor, and one that waits must not look hung."""
    in_hand = config.answers_in_hand
    for place, part in enumerate(config.rewards.parts):
        if not isinstance(part, VerifierPart):
            continue
        needed = part.needed_s(in_hand)
        key = f"rewards.parts.{place}"
        _demand(
            part.fleet.deadline_s >= needed,
            f"{key}.fleet.deadline_s {part.fleet.deadline_s:g} would count an actor as hung that"
            f" is at work: (staleness + 1) × queries × answers is {in_hand}, and if each takes"
            f" {key}.answer_deadline_s {part.answer_deadline_s:g} and {VERIFIER_RESTART_S:g} s for"
            f" a new process, the last one waits for {math.ceil(needed)} s: set"
            f" {key}.fleet.deadline_s to {math.ceil(needed)} or more or leave it out, or lower"
            f" {key}.answer_deadline_s",
        )


def _check_context(config: RunConfig) -> None:
    limit = config.rollout.context
    for role, tokens in (
        ("challenger", config.challenger.sampling.max_tokens),
        ("solver", config.solver.sampling.max_tokens),
    ):
        _demand(
            tokens < limit,
            f"{role}.sampling.max_tokens {tokens} leaves no room for a"
            f" prompt in rollout.context {limit}",
        )


def _check_offload(config: RunConfig) -> None:
    _demand(
        not config.learner.offload or config.learner.zero_stage >= 1,
        "learner.offload moves what ZeRO shards: set learner.zero_stage to 1, 2 or 3",
    )


def _demand(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)
