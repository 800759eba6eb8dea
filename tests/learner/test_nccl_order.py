"""Weights over vLLM's nccl transfer, really moved; see `gloo_transfer` for what stands in for NCCL.

The sending end is in this process.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError

from tests.learner.gloo_transfer import (
    CONFIG,
    GlooCommunicator,
    Model,
    Receiver,
    check_holds,
    check_packed,
    needs_trainer_engines,
    replace_nccl,
    sending_end,
    train,
    use_functions_of_025,
)

HANGS_SECONDS = 90
"""After which a send counts as one without end: vLLM's store would give up after 300."""


@pytest.fixture(scope="module")
def processes(ray_session) -> Iterator[list[Any]]:
    """Members' processes that the tests have left alive; each takes seconds to import vLLM."""
    alive: list[Any] = []
    yield alive
    for receiver in alive:
        ray.kill(receiver)


@pytest.fixture(params=[False, True], ids=["trainer engine", "functions of 0.25"])
def receivers(processes, monkeypatch, request) -> list[Any]:
    """Three members, as good as new, in processes of their own, for either vLLM that sends."""
    if request.param:
        use_functions_of_025(monkeypatch)
    else:
        needs_trainer_engines()
    for receiver in list(processes):
        try:
            ray.get(receiver.begin.remote(request.param), timeout=30)
        except (ActorDiedError, GetTimeoutError):
            ray.kill(receiver)
            processes.remove(receiver)
    actor: Any = ray.remote(num_cpus=0)(Receiver)
    new = [actor.remote() for _ in range(3 - len(processes))]
    ray.get([receiver.begin.remote(request.param) for receiver in new])
    processes.extend(new)
    return list(processes)


@pytest.fixture
def made(monkeypatch) -> list[GlooCommunicator]:
    """The communicators of the sending end, as they are made."""
    replace_nccl(monkeypatch.setattr)
    made: list[GlooCommunicator] = []
    init = GlooCommunicator.__init__

    def noted(self: GlooCommunicator, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(GlooCommunicator, "__init__", noted)
    return made


def error_of(send: Callable[[], None]) -> BaseException | None:
    """What a send raises; TimeoutError here where it comes to no end."""
    sent: Future[None] = Future()

    def work() -> None:
        try:
            sent.set_result(send())
        except Exception as error:  # noqa: BLE001 (it is what the test looks at)
            sent.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return sent.exception(HANGS_SECONDS)


def test_receivers_hold_the_senders_tensors_after_each_update(receivers, made):
    x, y, z = receivers
    model = Model(seed=0)
    learner = sending_end(model)

    for version in (1, 2):
        train(model)
        learner.send_weights(version, {"x": x, "y": y}, "nccl")
        for receiver in (x, y):
            check_holds(receiver, model, version)
    assert len(made) == 1
    check_packed(made[0].sizes[: len(made[0].sizes) // 2], model)
    at_version_2 = copy.deepcopy(model)

    # x has died and z joins: y changes its rank, and its first group is left by both ends.
    train(model)
    learner.send_weights(3, {"y": y, "z": z}, "nccl")
    for receiver in (y, z):
        check_holds(receiver, model, 3)
    assert [group.destroyed for group in made] == [True, False]
    connections = ray.get([receiver.connections.remote() for receiver in (x, y, z)])
    assert connections == [[(1, False)], [(2, True), (1, False)], [(2, False)]]

    check_holds(x, at_version_2, 2)


def test_a_member_that_dies_in_an_update_does_not_block_the_sender(receivers, made):
    x, y, z = receivers
    model = Model(seed=0)
    learner = sending_end(model)
    learner.send_weights(1, {"x": x, "y": y}, "nccl")
    ray.get(x.die_in_next_update.remote())
    train(model)
    with pytest.raises(ActorDiedError):
        learner.send_weights(2, {"x": x, "y": y}, "nccl")
    # The fleet restarts y, which waits in the broadcast with half an update.
    ray.kill(y)
    learner.send_weights(2, {"z": z}, "nccl")
    check_holds(z, model, 2)
    assert [group.disabled for group in made] == [True, False]


@pytest.mark.parametrize(
    ("receivers", "where"),
    [(True, "comes"), (False, "meets"), (False, "warms up")],
    indirect=["receivers"],
)
def test_a_member_that_dies_while_the_group_is_made_does_not_block_the_sender(
    receivers, made, where
):
    x, y, z = receivers
    model = Model(seed=0)
    learner = sending_end(model)
    ray.get(y.fail_when_it.remote(where))
    lost = error_of(lambda: learner.send_weights(1, {"x": x, "y": y}, "nccl"))
    assert isinstance(lost, ActorDiedError)
    # The fleet restarts x, which waits for y; the sender's other thread may do so for ever.
    ray.kill(x)
    learner.send_weights(1, {"z": z}, "nccl")
    check_holds(z, model, 1)
    assert [group.disabled for group in made] == [True] * (where != "comes") + [False]


@pytest.mark.parametrize("receivers", [False], indirect=True)
def test_a_member_that_never_connects_is_named_and_does_not_block_the_sender(receivers, made):
    x, y, z = receivers
    model = Model(seed=0)
    impatient = CONFIG.publish.model_copy(update={"deadline_s": 5.0})
    learner = sending_end(model, CONFIG.model_copy(update={"publish": impatient}))
    ray.get(y.fail_when_it.remote("is silent"))
    lost = error_of(lambda: learner.send_weights(1, {"x": x, "y": y}, "nccl"))
    assert isinstance(lost, TimeoutError)
    assert "'y'] have not answered init_transfer in 5 s" in str(lost)
    for blocked in (x, y):
        ray.kill(blocked)
    learner.send_weights(1, {"z": z}, "nccl")
    check_holds(z, model, 1)
