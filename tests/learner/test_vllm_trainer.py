"""The order of calls through vLLM's transfer, 0.32's engines and 0.25's functions; no NCCL here.

Tensors that really move, over gloo, are `test_nccl_order`'s.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError

from configs.load import load
from learner import members_client
from learner.rank import Place
from learner.vllm_trainer import (
    MembersClient,
    Passes,
    StaticSender,
    TrainerSender,
    WholePasses,
    connect,
)
from tests.conftest import ROOT
from tests.learner.gloo_transfer import needs_trainer_engines

CONFIGS = ROOT / "configs"
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
SHAPES = {name: tuple(tensor.shape) for name, tensor in WEIGHTS.items()}


class Member:
    """Records calls; `load_update` can wait for the broadcast, as a real engine does."""

    def __init__(self, log, name, broadcast=None) -> None:
        self.log, self.name, self.broadcast = log, name, broadcast

    def __getattr__(self, method):
        def remote(*arguments):
            self.log.append((self.name, method, *arguments))
            if method == "load_update" and self.broadcast is not None:
                assert self.broadcast.wait(10), "the learner must broadcast while engines receive"
            return ray.put(None)

        return type("Method", (), {"remote": staticmethod(remote)})


def methods(log):
    return [(name, method) for name, method, *_ in log]


def client(log, broadcast=None, names=("x", "y"), tensor_parallel=2):
    members = {name: Member(log, name, broadcast) for name in names}
    return MembersClient(members, tensor_parallel, deadline_s=10)


def tensors():
    return iter(WEIGHTS.items())


def test_every_engine_has_ranks_of_its_own(ray_session):
    log = []
    both = client(log)
    assert both.world_size == 5
    both.init_weight_transfer_engine({"rank_offset": 1, "world_size": 5})
    assert [(name, info["rank_offset"]) for name, _, info in log] == [("x", 1), ("y", 3)]


def test_a_silent_engine_is_named(ray_session):
    @ray.remote(num_cpus=0)
    def sleep():
        time.sleep(30)

    silent = Member([], "y")
    silent.start_update = type("Method", (), {"remote": staticmethod(lambda: sleep.remote())})
    waiting = MembersClient({"x": Member([], "x"), "y": silent}, 1, deadline_s=0.2)
    with pytest.raises(TimeoutError, match=r"\['y'\] have not answered start_update"):
        waiting.start_weight_update()


def test_an_engine_that_is_lost_is_the_cause_of_what_the_sender_meets(ray_session):
    lost = Member([], "y")

    def refuse(*_):
        raise TimeoutError("y is dead")

    lost.init_transfer = type("Method", (), {"remote": staticmethod(refuse)})
    both = MembersClient({"x": Member([], "x"), "y": lost}, 1, deadline_s=5)

    def connect() -> None:
        try:
            both.init_weight_transfer_engine({})
        except TimeoutError:
            raise RuntimeError("the store has waited for 2 of 3") from None

    with pytest.raises(TimeoutError, match="y is dead"), both.causes():
        connect()
    with pytest.raises(RuntimeError, match="its own"), both.causes():
        raise RuntimeError("its own")


@pytest.mark.parametrize("dies", [True, False])
def test_the_loss_of_an_engine_is_raised_and_not_what_the_others_say_of_it(
    ray_session, monkeypatch, dies
):
    @ray.remote(num_cpus=0)
    class Blocked:
        def init_transfer(self, info):
            time.sleep(1 if dies else 60)
            os._exit(1)

    @ray.remote(num_cpus=0)
    class Told:
        def init_transfer(self, info):
            raise ValueError("NCCL error: remote process exited")

    monkeypatch.setattr(members_client, "NEWS_S", 60 if dies else 0.1)
    aborted = []
    both = MembersClient({"x": Told.remote(), "y": Blocked.remote()}, 1, deadline_s=60)
    both.abort = lambda: aborted.append(1)
    with pytest.raises(ActorDiedError if dies else ValueError):
        both.init_weight_transfer_engine({})
    assert aborted == [1]


@pytest.fixture
def vllm_nccl(monkeypatch):
    """vLLM's NCCL engine module with the wire taken out: what is broadcast is recorded."""
    from vllm.distributed.weight_transfer import nccl_engine

    sent, broadcast = [], threading.Event()

    def produce(iterator, group, **_):
        broadcast.set()
        sent.extend(iterator)

    # 0.25 has neither.
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: "group", raising=False)
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", produce, raising=False)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    return nccl_engine, sent, broadcast


def check_exchange(log, sent):
    rounds = ["init_transfer", "start_update", "load_update", "finish_update"]
    assert methods(log) == [(name, method) for method in rounds for name in ("x", "y")]
    assert [entry[2] for entry in log if entry[1] == "finish_update"] == [7, 7]
    infos = [entry[2] for entry in log if entry[1] == "init_transfer"]
    assert [(i["rank_offset"], i["world_size"], i["master_address"]) for i in infos] == [
        (1, 5, "10.0.0.1"),
        (3, 5, "10.0.0.1"),
    ]
    message = next(entry[2] for entry in log if entry[1] == "load_update")
    assert message["names"] == ["a", "b"]
    assert message["dtype_names"] == ["float32", "float32"]
    assert message["shapes"] == [[2, 3], [4]]
    assert [name for name, _ in sent] == ["a", "b"]
    return message


def test_nccl_through_the_trainer_engines(ray_session, vllm_nccl):
    needs_trainer_engines()
    _, sent, broadcast = vllm_nccl
    log = []
    sender = TrainerSender(
        client(log, broadcast), tensors, SHAPES, torch.float32, "nccl", 0, 1 << 20
    )
    sender.send(7)
    check_exchange(log, sent)


def test_nccl_through_the_static_functions(ray_session, vllm_nccl, monkeypatch):
    nccl_engine, sent, broadcast = vllm_nccl

    def send(iterator, arguments):
        assert arguments["group"] == "group"
        broadcast.set()
        sent.extend(iterator)

    engine = nccl_engine.NCCLWeightTransferEngine
    monkeypatch.setattr(engine, "trainer_init", staticmethod(lambda info: "group"), raising=False)
    monkeypatch.setattr(engine, "trainer_send_weights", staticmethod(send), raising=False)
    log = []
    sender = StaticSender(
        client(log, broadcast), tensors, SHAPES, torch.float32, "nccl", 0, 1 << 20
    )
    sender.send(7)
    message = check_exchange(log, sent)
    # In 0.25 both sides are told the buffer's size with every update.
    assert message["packed"] is True
    assert message["packed_buffer_size_bytes"] == 1 << 20


def test_ranks_that_do_not_send_take_part_and_call_nobody(ray_session, vllm_nccl):
    needs_trainer_engines()
    log, taken = [], []

    def counted():
        for name, tensor in tensors():
            taken.append(name)
            yield name, tensor

    for kind in (TrainerSender, StaticSender):
        sender = kind(client(log), counted, SHAPES, torch.float32, "nccl", 1, 1 << 20)
        sender.send(7)
    assert taken == ["a", "b"] * 2
    assert log == []


def test_ipc_through_the_static_functions(ray_session, monkeypatch):
    from vllm.distributed.weight_transfer import ipc_engine

    @dataclass
    class Info:
        names: list[str]

    def send(iterator, arguments):
        # Packed, 0.25 would leave a buffer behind with every update.
        assert arguments["packed"] is False
        for name, _ in iterator:
            arguments["send_mode"](Info([name]))

    engine = ipc_engine.IPCWeightTransferEngine
    monkeypatch.setattr(engine, "trainer_send_weights", staticmethod(send), raising=False)
    log = []
    StaticSender(client(log, names=("x",)), tensors, SHAPES, torch.float32, "ipc", 0, 1 << 20).send(
        3
    )
    assert log == [
        ("x", "init_transfer", {}),
        ("x", "start_update"),
        ("x", "load_update", {"names": ["a"]}),
        ("x", "load_update", {"names": ["b"]}),
        ("x", "finish_update", 3),
    ]


def test_a_shut_down_static_sender_gives_its_communicator_back(ray_session, vllm_nccl, monkeypatch):
    destroyed = []
    group = SimpleNamespace(destroy=lambda: destroyed.append(1))
    engine = vllm_nccl[0].NCCLWeightTransferEngine
    monkeypatch.setattr(engine, "trainer_init", staticmethod(lambda info: group), raising=False)
    sender = StaticSender(client([]), tensors, SHAPES, torch.float32, "nccl", 0, 1 << 20)
    sender.shutdown()
    sender.shutdown()
    assert destroyed == [1]


@pytest.mark.parametrize(("backend", "grows"), [("ipc", True), ("nccl", False)])
def test_a_tensor_larger_than_the_buffer_fits_the_buffer_of_ipc(monkeypatch, backend, grows):
    """vLLM's ipc refuses it otherwise: Llama-3.2-1B's embedding takes twice the default buffer."""
    needs_trainer_engines()  # 0.25's ipc is given no buffer
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    opened = []

    def trainer_init(info, **_):
        opened.append(info)

    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", staticmethod(trainer_init))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    with torch.device("meta"):
        model = torch.nn.Embedding(128256, 2048)
    rank = SimpleNamespace(model=model, place=Place(0, 1, ""), device=torch.device("cpu"))
    config = load(CONFIGS / "one-gpu.yaml", ["publish.buffer_mib=256"])
    connect(rank, config, {}, backend)
    expected = 128256 * 2048 * 2 if grows else 256 << 20
    assert opened[0].packed_buffer_size_bytes == expected


def test_a_rank_that_cannot_connect_still_goes_through_every_tensor(monkeypatch):
    """The other ranks meet no engine: they have gone on to the gathers of the send."""
    needs_trainer_engines()
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    def refuse(info, **_):
        raise TimeoutError("['x'] have not answered init_transfer")

    gathered = []

    def gather(*_, **__):
        for name, tensor in tensors():
            gathered.append(name)
            yield name, tensor

    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", staticmethod(refuse))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    model = torch.nn.Linear(2, 2)
    rank = SimpleNamespace(model=model, place=Place(0, 2, ""), device=torch.device("cpu"))
    rank.tensors = gather
    with pytest.raises(TimeoutError):
        connect(rank, load(CONFIGS / "one-gpu.yaml", []), {}, "nccl")
    assert gathered == ["a", "b"]


@pytest.mark.parametrize("read", [0, 1, 2])
def test_a_send_that_fails_still_goes_through_every_tensor(read):
    """Or the other ranks of ZeRO-3 wait in a gather that this one never comes to."""
    gathered = []

    def begin():
        for name, tensor in tensors():
            gathered.append(name)
            yield name, tensor

    passes = Passes(begin)

    class Failing:
        def send(self, version):
            if version == 1:
                return list(passes())
            if read:
                given = passes()
                for _ in range(read):
                    next(given)
            raise TimeoutError("['x'] have not answered")

        def shutdown(self):
            pass

    sender = WholePasses(Failing(), passes, client([]))
    sender.send(1)
    with pytest.raises(TimeoutError):
        sender.send(2)
    assert gathered == ["a", "b", "a", "b"]
