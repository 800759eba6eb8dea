"""What only a GPU has: an engine that sleeps, and weights through CUDA IPC (`make test-gpu`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch.multiprocessing.reductions import reduce_tensor
from transformers import LlamaForCausalLM

from actors.member import Post
from actors.records import Sampling
from actors.rollout import RolloutActor
from configs.fleets import RolloutConfig
from tests.actors.helpers import ask, model_logprobs, perturb

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
CONFIG = RolloutConfig(context=384, max_sequences=16, memory_fraction=0.3, eager=True)
GREEDY = Sampling(temperature=0.0, max_tokens=24)
PROMPT = np.arange(10, 60, dtype=np.int32)


@pytest.fixture(scope="module")
def colocated(ray_session: None, tiny_model: Callable[[bool], Path]) -> Iterator[Any]:
    """An engine that shares its GPU with this process, the learner of these tests."""
    actor = ray.remote(RolloutActor).options(num_cpus=0, num_gpus=0.5)
    handle = actor.remote(
        str(tiny_model(True)),
        CONFIG,
        post=Post("rollout-0", "127.0.0.1"),
        transfer_backend="ipc",
        colocated=True,
    )
    yield handle
    ray.get(handle.stop.remote())
    ray.kill(handle)


def test_a_sleeping_engine_gives_its_memory_back_and_wakes_as_it_was(colocated: Any):
    (before,) = ray.get(colocated.generate.remote(ask(GREEDY, None)))
    awake = torch.cuda.mem_get_info()[0]
    ray.get(colocated.sleep.remote())
    assert torch.cuda.mem_get_info()[0] - awake > 2**30
    ray.get(colocated.wake.remote())
    (after,) = ray.get(colocated.generate.remote(ask(GREEDY, None)))
    assert after.token_ids.tolist() == before.token_ids.tolist()


def test_weights_arrive_through_ipc(colocated: Any, tiny_model: Callable[[bool], Path]):
    model = LlamaForCausalLM.from_pretrained(tiny_model(True), dtype=torch.bfloat16).cuda()
    perturb(model.cpu().float(), 1)
    model = model.bfloat16().cuda()
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    named = [(name, p.detach()) for name, p in model.named_parameters()]
    message = {
        "names": [name for name, _ in named],
        "dtype_names": ["bfloat16"] * len(named),
        "shapes": [list(p.shape) for _, p in named],
        "ipc_handles": [{uuid: reduce_tensor(p)[1]} for _, p in named],
    }
    ray.get(colocated.init_transfer.remote({}))
    ray.get(colocated.start_update.remote())
    ray.get(colocated.load_update.remote(message))
    ray.get(colocated.finish_update.remote(1))
    probed = ray.get(colocated.probe.remote(PROMPT))
    expected = model_logprobs(model.cpu().float(), PROMPT)
    assert np.abs(probed - expected).mean() < 0.05
