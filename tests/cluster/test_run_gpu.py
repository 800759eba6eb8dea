"""Whole iterations on a GPU (`make test-gpu`): learner and engine on one by ipc, on two by nccl.

The game is played in a process of its own, for the reason that `tests/gpu_process.py` gives.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from benchmarks.bench import Kept
from cluster.connection import connect
from cluster.wiring import Wired, wire
from configs.load import load
from configs.schema import RunConfig
from tests import gpu_process
from tests.conftest import ROOT

GPUS = torch.cuda.device_count()
ITERATIONS = 2
# So large a learning rate that the weights of two versions cannot be mistaken for each other.
SETTINGS = [
    "algorithm=grpo",
    f"iterations={ITERATIONS}",
    "queries=2",
    "answers=4",
    "rewards.quality=null",
    "rewards.parts=[{kind: verifier, name: length, function: 'tests.cluster.length:score'}]",
    "challenger.sampling.max_tokens=24",
    "solver.sampling.max_tokens=24",
    "rollout={gpus: 0.3, memory_fraction: 0.2, context: 384, max_sequences: 16, eager: true}",
    "learner.learning_rate=1e-2",
]


async def play(config: RunConfig) -> dict[str, Any]:
    """Play a run; return what its engine served before and after, and the GPU's free memory."""
    wired = wire(config, config.model.path)
    free: dict[str, int] = {}
    step = wired.learner.step

    async def observed(*arguments: Any) -> Any:
        free["training"] = torch.cuda.mem_get_info()[0]
        return await step(*arguments)

    wired.learner.step = observed
    try:
        await wired.start()
        await wired.policy.publish(0)
        free["playing"] = torch.cuda.mem_get_info()[0]
        before = await served(wired)
        async for _ in wired.game(config, Kept()).play():
            pass
        after = await served(wired)
        names = list(after["checksums"])
        return {
            "backend": type(wired.publisher).__name__,
            "versions": [before["version"], after["version"], wired.learner.steps],
            "checksums": after["checksums"],
            "learnt_checksums": await wired.learner.checksums(names, config.rollout.dtype),
            "moved": difference(before["probe"], after["probe"]),
            "parity": difference(await wired.learner.probe(wired.prompts.probe), after["probe"]),
            "free": free,
        }
    finally:
        await wired.stop()


async def served(wired: Wired) -> dict[str, Any]:
    """What the only engine serves: version, checksums, log-probabilities of a fixed prompt."""
    (member,) = wired.policy.fleet.serving().values()
    names = list(await wired.learner.tensor_sizes())
    return {
        "version": await member.version.remote(),
        "checksums": await member.checksums.remote(names),
        "probe": await member.probe.remote(wired.prompts.probe),
    }


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def played(tiny_model: Callable[[bool], Path], folder: Path, *overrides: str) -> dict[str, Any]:
    """Play by `play` in a process of its own; check what must hold wherever the engine stands."""
    data = folder / "queries.jsonl"
    data.write_text('{"query": "Sort b d a c."}\n{"query": "What is three plus four?"}\n')
    settings = [
        *SETTINGS,
        f"model.path={tiny_model(True)}",
        f"source={{kind: dataset, dataset: {{path: {data}}}}}",
        f"run_dir={folder / 'run'}",
        *overrides,
    ]
    printed = gpu_process.run("tests.cluster.test_run_gpu", *settings)
    seen = json.loads(printed.splitlines()[-1])
    assert seen["backend"] == "VllmPublisher"
    assert seen["versions"] == [0, ITERATIONS, ITERATIONS]
    assert len(seen["checksums"]) > 4
    assert seen["checksums"] == seen["learnt_checksums"]
    assert seen["parity"] < 0.05
    assert seen["moved"] > 0.2
    return seen


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(GPUS == 0, reason="no GPU")
def test_learner_and_engine_take_turns_on_one_gpu(tiny_model, tmp_path):
    free = played(tiny_model, tmp_path)["free"]
    # The engine sleeps while the learner trains.
    assert free["training"] - free["playing"] > 2**30


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    GPUS < 2,
    reason=f"nccl refuses two ranks on one GPU, and this machine has {GPUS} GPUs; without them"
    " tests/learner/test_nccl_order.py sends the same messages over gloo",
)
def test_weights_travel_between_two_gpus_by_nccl(tiny_model, tmp_path):
    played(tiny_model, tmp_path, "colocate=false", "learner.gpus=1", "rollout.gpus=1")


if __name__ == "__main__":
    connect()
    try:
        print(json.dumps(asyncio.run(play(load(ROOT / "configs" / "one-gpu.yaml", sys.argv[1:])))))
    finally:
        ray.shutdown()
