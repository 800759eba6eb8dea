"""What `make bench` measures by itself on a machine, and what its result says of its making."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import LlamaConfig

from actors.chat import load_tokenizer
from benchmarks import bench, measure
from benchmarks.shapes import CONTEXT, SHAPES, STOP, random_model
from cluster.placement import NodeConfig
from cluster.plan import make_plan
from cluster.players import Policy
from cluster.wiring import backend_of
from configs.errors import UserError
from configs.load import load
from playground.tokenizer import make_tokenizer

H200 = NodeConfig(name="h200", gpus=1, gpu_gib=139, cpus=16, memory_gib=128)


def works(on_gpu: bool, **named: object) -> list[bench.Work]:
    options = {"config": None, "shape": None, "overrides": ["queries=4"]} | named
    return bench.works(argparse.Namespace(**options), on_gpu)


def test_a_gpu_is_measured_on_both_llama_shapes_and_a_cpu_on_the_quickstart(monkeypatch):
    monkeypatch.setattr(measure, "machine_name", lambda: "m")
    on_gpu = works(on_gpu=True)
    names = [work.result().name for work in on_gpu]
    assert names == ["bench-m-llama-3.2-1b.json", "bench-m-llama-3.2-3b.json"]
    assert {work.config.name for work in on_gpu} == {"one-gpu.yaml"}
    # The user's own overrides come last.
    assert on_gpu[0].overrides == (*bench.ONE_GPU, "queries=4")
    assert [work.shape for work in works(on_gpu=True, shape="llama-3.2-3b")] == ["llama-3.2-3b"]

    (on_cpu,) = works(on_gpu=False)
    assert (on_cpu.config.name, on_cpu.shape) == ("quickstart.yaml", "tiny")
    assert on_cpu.result().name == "bench-m.json"


def test_a_configuration_that_is_named_is_taken_as_it_is():
    (work,) = works(on_gpu=True, config=Path("mine.yaml"))
    assert work == bench.Work(
        Path("mine.yaml"), ("queries=4",), "tiny", bench.QUICKSTART, plays_shape=False
    )


@pytest.mark.parametrize(("shape", "too_small"), [("llama-3.2-1b", 20), ("llama-3.2-3b", 60)])
def test_the_gpu_configuration_is_played_on_one_gpu_and_fits_it(tmp_path, shape, too_small):
    (work,) = works(on_gpu=True, shape=shape, overrides=[])
    LlamaConfig(**SHAPES[work.shape], max_position_embeddings=CONTEXT).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    config = load(work.config, [*work.overrides, f"model.path={tmp_path}"])
    assert config.colocate
    assert backend_of(config) == "ipc"
    make_plan(config, [H200])
    with pytest.raises(UserError, match=f"GPU 0 has {too_small}"):
        make_plan(config, [H200.model_copy(update={"gpu_gib": too_small})])


def test_what_a_speaking_random_model_samples_is_a_text_that_can_end(tmp_path):
    folder = random_model("tiny", tmp_path, speaks=True)
    tokenizer = load_tokenizer(str(folder))
    words = np.arange(len(make_tokenizer()), SHAPES["tiny"]["vocab_size"])
    text = tokenizer.decode(words.tolist())
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == words.tolist()
    ends = (text + " ").count(STOP)
    assert ends == pytest.approx(len(words) / 100, abs=2)


def test_a_result_says_by_which_command_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/benchmarks/bench.py", "--only", "game", "a.b=c d"])
    monkeypatch.setattr(measure, "machine", lambda: {"gpus": []})
    measure.write(tmp_path / "r.json", {"figure": 1})
    written = SimpleNamespace(**json.loads((tmp_path / "r.json").read_text()))
    assert written.command == "python -m benchmarks.bench --only game 'a.b=c d'"
    assert "git_commit" in written.versions
    assert written.figure == 1


@pytest.mark.parametrize("colocated", [True, False])
def test_engines_on_the_learners_gpu_sleep_while_a_stage_is_trained(colocated):
    log: list[str] = []

    async def called(name: str, *_: object) -> SimpleNamespace:
        log.append(name)
        return SimpleNamespace(lost={}, parity={})

    async def stages() -> list[dict[str, float]]:
        fleet = SimpleNamespace(
            weights=asyncio.Lock(),
            call=called,
            call_each=called,
            serving=dict,
            note_version=lambda *_: None,
        )
        publisher = SimpleNamespace(publish=lambda *_: called("publish"))
        wired = SimpleNamespace(
            policy=Policy(fleet, publisher, colocated=colocated),
            solver=SimpleNamespace(sampling=None),
            scorers=[],
            learner=SimpleNamespace(step=lambda *_: called("train"), steps=1),
        )
        return [await bench.bare_stages(wired, i, [], []) for i in range(2)]

    seconds = asyncio.run(stages())
    turn = ["sleep", "train", "wake", "publish"] if colocated else ["train", "publish"]
    assert log == ["generate", *turn] * 2
    assert ("sleep" in seconds[0]) == colocated
