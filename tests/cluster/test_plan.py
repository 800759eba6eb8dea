"""Placement and memory: every preset fits what it is made for, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.memory import ModelSize, learner_parts, measure, resting_gib
from cluster.placement import Demand, NodeConfig, demands, place
from cluster.plan import (
    check_beginning,
    make_plan,
    render,
)
from configs.errors import UserError
from configs.load import load
from tests.conftest import ROOT
from tests.models import make_tokenizer

CONFIGS = ROOT / "configs"
NODE = NodeConfig(name="a", gpus=8, gpu_gib=80, cpus=96, memory_gib=1000)
ONE = NodeConfig(name="a", gpus=1, gpu_gib=80, cpus=16, memory_gib=200)
LAPTOP = NodeConfig(name="laptop", cpus=2, memory_gib=16)
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "intermediate_size": 8192,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
CLASSIFIER = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "reward"}}
SHAPES = {
    "3b": {
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "head_dim": 128,
    },
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> dict[str, Path]:
    """Folders of Llama-3.2 without weights, each with a reward model of its shape in `reward`."""
    folders = {name: tmp_path_factory.mktemp(name) for name in SHAPES}
    for name, folder in folders.items():
        save_shape(folder, LLAMA | SHAPES[name])
        save_shape(folder / "reward", LLAMA | SHAPES[name] | CLASSIFIER)
    return folders


def save_shape(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    make_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))


def preset(name: str, folder: Path, *overrides: str):
    models = [f"model.path={folder}", f"rewards.parts.0.model={folder / 'reward'}"]
    return load(CONFIGS / f"{name}.yaml", [*models, *overrides])


@pytest.mark.parametrize("name", ["lsp", "lsp-paper", "lsp-zero", "grpo"])
def test_the_3b_presets_fill_one_node_of_eight_gpus(llama, name):
    plan = make_plan(preset(f"llama-3.2-3b-{name}", llama["3b"]), [NODE])
    devices = [device for seat in plan.seats for device in seat.devices]
    assert sorted(devices) == list(range(8))
    assert plan.parameters == 3_212_749_824  # the published count of Llama-3.2-3B


def test_the_one_gpu_preset_fits_one_gpu(llama):
    plan = make_plan(preset("one-gpu", llama["1b"]), [ONE])
    assert plan.parameters == 1_235_814_400
    assert {seat.devices for seat in plan.seats} == {(0,)}
    assert plan.loads[0].needed < 80


def test_a_colocated_gpu_is_counted_at_the_worse_of_its_two_phases(llama):
    for fraction in (0.07, 0.25):
        config = preset(
            "one-gpu",
            llama["1b"],
            f"rollout.memory_fraction={fraction}",
        )
        plan = make_plan(config, [ONE])
        gib = {fleet: sum(parts.values()) for fleet, parts in plan.parts.items()}
        stay = gib["judge"] + gib["reward_preference"]
        learning = gib["learner"] + stay
        playing = resting_gib(plan.parts["learner"]) + gib["rollout"] + stay
        assert plan.loads[0].needed == pytest.approx(max(learning, playing))
        assert plan.loads[0].needed < gib["rollout"] + learning


def test_the_quickstart_fits_two_cores_and_says_what_it_does_not_know():
    plan = make_plan(load(CONFIGS / "quickstart.yaml"), [LAPTOP])
    assert "not estimated and not checked: the model is made when the run starts" in render(plan)


def test_more_gpus_than_there_are_names_who_asks(llama):
    config = preset("llama-3.2-3b-lsp", llama["3b"], "rollout.replicas=6")
    with pytest.raises(UserError, match=r"asks for 10 GPUs \(learner 2, rollout 6, judge 1.*has 8"):
        make_plan(config, [NODE])


def test_on_a_cluster_the_learner_and_one_of_each_fleet_are_enough_to_begin(llama, monkeypatch):
    config = preset("llama-3.2-3b-lsp", llama["3b"], "rollout.replicas=6")
    monkeypatch.setattr("cluster.plan._live_nodes", lambda: [NODE])
    waits = check_beginning(config)
    assert waits is not None
    assert "asks for 10 GPUs" in waits
    assert "begins with the actors that have a place" in waits
    enough = NODE.model_copy(update={"gpus": 10})
    monkeypatch.setattr("cluster.plan._live_nodes", lambda: [enough])
    assert check_beginning(config) is None
    # Four are the least: two ranks, an engine, the judge; the reward model has no place then.
    monkeypatch.setattr("cluster.plan._live_nodes", lambda: [NODE.model_copy(update={"gpus": 4})])
    with pytest.raises(UserError, match="asks for 5 GPUs"):
        check_beginning(config)
    # A Ray of the run's own gets no more nodes.
    monkeypatch.setattr("cluster.plan._live_nodes", list)
    monkeypatch.setattr("cluster.plan.this_machine", lambda: NODE)
    with pytest.raises(UserError, match="asks for 10 GPUs"):
        check_beginning(config)


def test_actors_go_to_nodes_with_their_labels_and_leave_those_of_others():
    engine = Demand("rollout 0", "rollout", 1, 0.0, labels={"pool": "big"})
    plain = Demand("judge 0", "judge", 1, 0.0)
    big = NodeConfig(name="big", cpus=1, memory_gib=8, labels={"pool": "big", "zone": "a"})
    other = NodeConfig(name="other", cpus=1, memory_gib=8)
    assert [seat.node for seat in place([plain, engine], [big, other])] == ["other", "big"]
    with pytest.raises(UserError, match=r"rollout 0 needs 1 CPUs on one node labelled pool=big"):
        place([engine], [other, other])


def test_memory_that_actors_reserve_is_given_out_once():
    wanted = [Demand(f"judge {i}", "judge", 0, 0.0, memory_gib=5) for i in range(2)]
    nodes = [NodeConfig(name=name, cpus=1, memory_gib=8) for name in "ab"]
    assert [seat.node for seat in place(wanted, nodes)] == ["a", "b"]
    with pytest.raises(UserError, match=r"judge 1 needs 0 CPUs and 5 GiB of memory on one node,"):
        place(wanted, nodes[:1])


def test_the_object_stores_share_of_the_memory_is_not_given_out():
    actor = Demand("judge 0", "judge", 0, 0.0, memory_gib=8)
    node = NodeConfig(name="a", cpus=1, memory_gib=10)
    with pytest.raises(UserError, match="judge 0 needs 0 CPUs and 8 GiB"):
        place([actor], [node])
    assert place([actor], [node.model_copy(update={"reservable_gib": 8.0})])


def test_the_hardest_is_seated_first_and_each_where_least_is_left():
    small = NodeConfig(name="small", cpus=1, memory_gib=8)
    big = NodeConfig(name="big", cpus=1, memory_gib=16)
    light, heavy = (Demand(f"judge {gib}", "judge", 0, 0.0, memory_gib=gib) for gib in (5, 11))
    for wanted in ([light, heavy], [heavy, light]):
        seats = {seat.demand.name: seat.node for seat in place(wanted, [big, small])}
        assert seats == {"judge 5": "small", "judge 11": "big"}
    one, half = (Demand(f"rollout {gpus}", "rollout", 0, gpus) for gpus in (1.0, 0.5))
    one_gpu = NodeConfig(name="one", gpus=1, gpu_gib=80, cpus=8, memory_gib=100)
    two_gpus = one_gpu.model_copy(update={"name": "two", "gpus": 2})
    seats = {seat.demand.name: seat.node for seat in place([half, one], [two_gpus, one_gpu])}
    assert seats == {"rollout 1.0": "one", "rollout 0.5": "two"}


def test_the_labels_and_memory_of_a_configuration_are_asked_for():
    settings = ["rollout.labels={pool: big}", "rollout.memory_gib=3"]
    config = load(CONFIGS / "quickstart.yaml", settings)
    (asked,) = (each for each in demands(config) if each.fleet == "rollout")
    assert (asked.labels, asked.memory_gib) == ({"pool": "big"}, 3)


def test_more_cpus_than_there_are_is_refused():
    config = load(CONFIGS / "quickstart.yaml", ["rollout.cpus=4"])
    with pytest.raises(UserError, match=r"CPUs \(learner 0.5, rollout 4, .*has 2"):
        make_plan(config, [LAPTOP])


def test_a_safety_classifier_is_counted_where_it_stands(llama):
    model = llama["1b"] / "reward"
    safety = f"{{model: {model}, labels: [reward], dtype: bfloat16, fleet: {{gpus: 0.1}}}}"
    shares = "learner.gpus=0.3"
    without = make_plan(preset("one-gpu", llama["1b"], shares), [ONE])
    beside = make_plan(preset("one-gpu", llama["1b"], shares, f"gate.safety={safety}"), [ONE])
    gib = beside.parts["safety"]
    assert gib["weights"] == pytest.approx(2 * (1_235_814_400 + 2048) / 2**30)
    assert 0 < gib["activations"] < gib["weights"]
    grown = beside.loads[0].needed - without.loads[0].needed
    assert grown == pytest.approx(sum(gib.values()))
    assert "safety 0" in render(beside)


def test_a_learner_that_does_not_fit_is_refused_with_the_remedy(llama):
    config = preset("llama-3.2-3b-lsp", llama["3b"], "learner.gradient_checkpointing=false")
    small = NODE.model_copy(update={"gpu_gib": 60})
    with pytest.raises(UserError, match=r"a GPU 0 has 60.0 GiB and learner 0 .*checkpointing"):
        make_plan(config, [small])


def test_engines_that_share_a_gpu_too_greedily_are_refused(llama):
    config = preset("one-gpu", llama["1b"], "rewards.quality.fleet.memory_fraction=0.6")
    with pytest.raises(UserError, match="GPU 0 has 80"):
        make_plan(config, [ONE])


def test_an_engine_without_room_for_one_sequence_is_refused(llama):
    config = preset("llama-3.2-3b-lsp", llama["3b"], "rollout.memory_fraction=0.1")
    with pytest.raises(UserError, match=r"fleet rollout: weights take 6.0 GiB .*memory_fraction"):
        make_plan(config, [NODE])


def test_a_context_beyond_the_models_is_refused(llama):
    config = preset("llama-3.2-3b-lsp", llama["3b"], "rollout.context=200000")
    with pytest.raises(UserError, match="context 200000 is more than the model's 131072"):
        make_plan(config, [NODE])


def test_a_model_that_is_not_there_is_named_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"model\.path .*no config.json of a model there"):
        measure("model.path", str(tmp_path))


def test_a_model_of_another_kind_is_named(tmp_path, llama):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match=r"model\.path .*type 'vit' cannot serve as a causal lang"):
        measure("model.path", str(tmp_path))
    key = "rewards.parts.taste.model"
    with pytest.raises(UserError, match=rf"{key} .*type 'vit' cannot serve as a sequence class"):
        measure(key, str(tmp_path), reward=True)
    # Beside the tied embeddings, which both have, a classifier has one row of 3,072 numbers.
    whole = measure("model.path", str(llama["3b"])).parameters
    assert measure(key, str(llama["3b"] / "reward"), reward=True).parameters == whole + 3072


def test_a_model_without_attention_is_named_with_what_it_lacks(tmp_path):
    shape = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    with pytest.raises(UserError, match=r"model\.path .*'mamba' has no num_attention_heads"):
        measure("model.path", str(tmp_path))


def test_a_wrong_value_in_a_models_config_is_named(tmp_path):
    save_shape(tmp_path, LLAMA | SHAPES["1b"] | {"hidden_size": "wide"})
    with pytest.raises(
        UserError, match=r"model\.path .*config\.json is wrong.*hidden_size"
    ) as told:
        measure("model.path", str(tmp_path))
    assert "\n" not in str(told.value)


def test_a_model_of_text_and_images_is_measured_by_its_text(tmp_path):
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
    shape = {"model_type": "gemma3", "text_config": text | {"vocab_size": 320}}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    size = measure("model.path", str(tmp_path))
    assert (size.layers, size.hidden, size.head_size, size.vocabulary) == (2, 64, 16, 320)


def test_a_model_that_leaves_its_mlp_at_the_usual_width_is_measured(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    size = measure("model.path", str(tmp_path))
    assert (size.feed_forward, size.parameters) == (3072, 124_439_808)  # the published count


def test_offloading_moves_the_optimiser_to_main_memory(llama):
    size = measure("model.path", str(llama["1b"]))
    learner = load(
        CONFIGS / "one-gpu.yaml", ["learner.zero_stage=2", "learner.offload=true"]
    ).learner
    device, host = learner_parts(learner, size, kl=True)
    assert host["optimiser"] == pytest.approx(12 * size.parameters / 2**30)
    assert "optimiser" not in device


def test_learner_memory_by_hand():
    size = ModelSize(2**30, 10, 1000, 4000, 5, 100, 2**20, 4096)
    learner = load(
        CONFIGS / "llama-3.2-3b-lsp.yaml",
        ["learner.ranks=4", "learner.micro_batch_tokens=1024", "learner.logprob_chunk=1024"],
    ).learner
    device, host = learner_parts(learner, size, kl=True)
    # ZeRO-2 on four ranks: gradients and optimiser are shared, the weights are whole.
    assert (device["weights"], device["reference"]) == (2.0, 2.0)
    assert (device["gradients"], device["optimiser"], host) == (1.0, 3.0, {})
    assert device["logits"] == 12.0
    # Checkpointed: the input of ten layers, and one layer's 25,000 elements, of two bytes each.
    assert device["activations"] == pytest.approx(1024 * (10 * 1000 * 2 + 25_000 * 2) / 2**30)
    assert resting_gib(device) == pytest.approx(8.0 + device["process"])


def test_learner_ranks_never_share_a_gpu_and_fractions_do(llama):
    more = ["learner.ranks=2", "rollout.replicas=2", "colocate=false"]
    config = preset("one-gpu", llama["1b"], *more)
    seats = place(demands(config), [ONE.model_copy(update={"gpus": 2})])
    by_name = {seat.demand.name: seat.devices for seat in seats}
    assert by_name["learner 0"] != by_name["learner 1"]
    with pytest.raises(UserError, match=r"learner 1 needs 1 × 0\.4 GPU"):
        place([d for d in demands(config) if d.fleet == "learner"], [ONE])


def test_a_tensor_parallel_engine_stays_on_one_node():
    engine = Demand("rollout 0", "rollout", 1, 1.0, devices=4)
    small = NodeConfig(name="small", count=2, gpus=2, gpu_gib=80, cpus=8, memory_gib=100)
    with pytest.raises(UserError, match="rollout 0 needs 4 × 1 GPU"):
        place([engine], [small, small.model_copy(update={"name": "other"})])
    large = NodeConfig(name="large", gpus=4, gpu_gib=80, cpus=8, memory_gib=100)
    (seat,) = place([engine], [small, large])
    assert (seat.node, seat.devices) == ("large", (0, 1, 2, 3))


def test_tensor_parallel_engines_need_whole_gpus():
    base = CONFIGS / "llama-3.2-3b-lsp.yaml"
    with pytest.raises(UserError, match="fleet rollout: gpus 2 is per tensor-parallel rank"):
        demands(load(base, ["rollout.gpus=2"]))
    with pytest.raises(UserError, match="fleet rollout: tensor_parallel 2 needs gpus 1"):
        demands(load(base, ["rollout.gpus=0.5", "rollout.tensor_parallel=2"]))


@pytest.mark.parametrize("sizes", [(8, 4), (4, 8)])
def test_learner_ranks_leave_an_engine_the_only_node_that_has_room_for_it(sizes):
    nodes = [
        NodeConfig(name=f"{gpus} GPUs", gpus=gpus, gpu_gib=80, cpus=64, memory_gib=900)
        for gpus in sizes
    ]
    ranks = [Demand(f"learner {i}", "learner", 1, 1.0) for i in range(4)]
    engine = Demand("rollout 0", "rollout", 1, 1.0, devices=8)
    assert [seat.node for seat in place([*ranks, engine], nodes)] == ["4 GPUs"] * 4 + ["8 GPUs"]
