"""vLLM's own weight transfer (nccl, ipc), seen from a learner rank: 0.25.1 to 0.32.

Every rank calls `connect` and `send`, since gathering a sharded tensor is a collective; rank 0
alone talks to the engines and to the NCCL group. vLLM 0.32 has trainer engines that drive the
whole exchange; 0.25 has two static functions, and the order of calls is ours. Neither has been
run on real NCCL: the tests run vLLM's own engines with NCCL's broadcast replaced by gloo's.

In the NCCL group rank 0 is the learner's, then come the engines one after the other, each with
its tensor-parallel ranks. vLLM's Ray client would give every engine the same offset.
"""

from __future__ import annotations

import contextlib
import gc
import math
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

import ray
import torch

from configs.schema import RunConfig
from learner.members_client import MembersClient
from learner.weights import tensor_shapes

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from learner.rank import Rank

MIB = 1 << 20


class Sender(Protocol):
    """The sending end on one learner rank."""

    def send(self, version: int) -> None:
        """Send the weights as `version`; every rank must call it."""
        ...

    def shutdown(self) -> None:
        """Let go of the connection."""
        ...


def connect(
    rank: Rank, config: RunConfig, members: Mapping[str, ActorHandle], backend: str
) -> Sender:
    """Connect this rank with the engines through `backend`, as the installed vLLM has it."""
    client = MembersClient(members, config.rollout.tensor_parallel, config.publish.deadline_s)
    client.abort = abort
    dtype: torch.dtype = getattr(torch, config.rollout.dtype)
    buffer_bytes = config.publish.buffer_mib * MIB

    def begin() -> Iterator[tuple[str, torch.Tensor]]:
        if rank.device.type == "cuda":
            # vLLM reads on streams of its own, which do not wait for what the optimiser has queued.
            torch.cuda.synchronize(rank.device)
        # Over ipc each engine reads its own GPU's copy, so that every rank must hold one.
        everywhere = backend == "ipc"
        return rank.tensors(dtype, buffer_bytes, rank.device, on_every_rank=everywhere)

    tensors = Passes(begin)
    shapes = tensor_shapes(rank.model)
    factory = TrainerSender if _has_trainer_factory() else StaticSender
    packed_bytes = max(buffer_bytes, _largest(shapes, dtype)) if backend == "ipc" else buffer_bytes
    place = rank.place.rank
    make = partial(factory, client, tensors, shapes, dtype, backend, place, packed_bytes)
    # Where this fails, the other ranks, which meet no engine, have gone on to the send.
    with tensors.whole(), client.causes():
        sender = _made(make, client)
    return WholePasses(sender, tensors, client)


def _made(make: Callable[[], Sender], client: MembersClient) -> Sender:
    """Make the sender; the first engine that fails to connect ends the wait for it.

    vLLM's store and NCCL wait for every engine, also for one that is dead, and nothing ends their
    wait. So they wait on a thread of their own (whose GPU is 0, as the rank's), which is left
    behind where an engine fails. It can harm no later group: its store has a port of its own, and
    its communicator never becomes complete, since all its engines are replaced; where it was
    complete, and an engine died in its first collective, `abort` has ended that, and nothing more
    is enqueued.
    The thread ends when the store gives up or NCCL sees a closed connection, or else sleeps until
    its process ends.
    """
    made: Future[Sender] = Future()

    def work() -> None:
        try:
            made.set_result(make())
        except BaseException as error:  # noqa: BLE001 (raised to whoever waits)
            made.set_exception(error)

    Thread(target=work, name="connect", daemon=True).start()
    either: list[Future[Any]] = [made, client.connected]
    wait(either, return_when=FIRST_COMPLETED)
    if not made.done():
        client.connected.result()
    return made.result()


def _largest(shapes: Shapes, dtype: torch.dtype) -> int:
    """Bytes of the largest tensor: vLLM refuses one that its ipc buffer cannot hold whole."""
    return max(math.prod(shape) for shape in shapes.values()) * dtype.itemsize


Tensors = Callable[[], Iterator[tuple[str, torch.Tensor]]]


class Passes:
    """The learner's tensors, pass by pass: `begin` starts one.

    Gathering a sharded tensor is a collective: a pass that one rank leaves in the middle leaves
    the others in it, and their next collectives would meet in the wrong order.
    """

    def __init__(self, begin: Tensors) -> None:
        self._begin = begin
        self._pass: Iterator[tuple[str, torch.Tensor]] | None = None

    def __call__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Begin the pass of a send."""
        self._pass = self._begin()
        return self._pass

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Before a failure is raised, go through what is left of the pass that has begun since, or
        through all of one that never began."""
        self._pass = None
        try:
            yield
        except Exception:
            for _ in self._begin() if self._pass is None else self._pass:
                pass
            raise


class WholePasses:
    """A sender that takes part in every collective of a send, also where the send fails."""

    def __init__(self, sender: Sender, tensors: Passes, client: MembersClient) -> None:
        self._sender = sender
        self._tensors = tensors
        self._client = client

    def send(self, version: int) -> None:
        """See `Sender`."""
        with self._tensors.whole(), self._client.causes():
            self._sender.send(version)

    def shutdown(self) -> None:
        """See `Sender`."""
        self._sender.shutdown()


Shapes = Mapping[str, tuple[int, ...]]


class TrainerSender:
    """Through vLLM 0.32's trainer engines, which drive the engines by themselves."""

    def __init__(
        self,
        client: MembersClient,
        tensors: Tensors,
        shapes: Shapes,
        dtype: torch.dtype,
        backend: str,
        rank: int,
        buffer_bytes: int,
    ) -> None:
        from vllm.distributed.weight_transfer.factory import (  # noqa: PLC0415 (vLLM: seconds)
            WeightTransferTrainerFactory,
        )

        self._client = client
        info = _trainer_init_info(backend, rank, client.world_size, buffer_bytes)
        source = _weight_source(tensors, shapes, dtype)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)

    def send(self, version: int) -> None:
        """See `Sender`."""
        self._client.version = version
        self._engine.send_weights()

    def shutdown(self) -> None:
        """See `Sender`."""
        self._engine.shutdown()


class StaticSender:
    """Through the static functions of vLLM 0.25's engines, with the calls in our order."""

    def __init__(
        self,
        client: MembersClient,
        tensors: Tensors,
        shapes: Shapes,
        dtype: torch.dtype,
        backend: str,
        rank: int,
        buffer_bytes: int,
    ) -> None:
        self._client = client
        self._tensors = tensors
        self._info = _update_info(shapes, dtype)
        self._backend = backend
        self._is_sender = rank == 0
        self._buffer_bytes = buffer_bytes
        self._group = self._open() if self._is_sender else None

    def send(self, version: int) -> None:
        """See `Sender`."""
        if self._backend == "ipc":
            # Handles of all ranks would have to be merged, which 0.25 does by itself.
            self._around(version, self._send_ipc)
        elif self._is_sender:
            self._around(version, self._send_nccl)
        else:
            for _ in self._tensors():
                pass

    def shutdown(self) -> None:
        """See `Sender`."""
        if self._group is not None:
            # Without it NCCL keeps the communicator's memory for the life of the process.
            self._group.destroy()
        self._group = None

    def _open(self) -> Any:
        if self._backend == "ipc":
            self._client.init_weight_transfer_engine({})
            return None
        from vllm.distributed.weight_transfer import nccl_engine  # noqa: PLC0415 (vLLM: seconds)

        info = {**_meeting_point(), "world_size": self._client.world_size}
        # Both sides block until the other has come.
        with ThreadPoolExecutor(1) as thread:
            engines = thread.submit(
                self._client.init_weight_transfer_engine, info | {"rank_offset": 1}
            )
            group = nccl_engine.NCCLWeightTransferEngine.trainer_init(info)  # pyright: ignore
            engines.result()
        return group

    def _around(self, version: int, transfer: Callable[[], None]) -> None:
        self._client.version = version
        if self._is_sender:
            self._client.start_weight_update()
        transfer()
        if self._is_sender:
            self._client.finish_weight_update()

    def _send_nccl(self) -> None:
        from vllm.distributed.weight_transfer import nccl_engine  # noqa: PLC0415

        packing = {"packed": True, "packed_buffer_size_bytes": self._buffer_bytes}
        thread = ThreadPoolExecutor(1)
        try:
            engines = thread.submit(self._client.update_weights, self._info | packing)
            nccl_engine.NCCLWeightTransferEngine.trainer_send_weights(  # pyright: ignore
                self._tensors(), {"group": self._group, **packing}
            )
            engines.result()
        finally:
            # An engine may still block in the broadcast that failed here: do not wait for it.
            thread.shutdown(wait=False)

    def _send_ipc(self) -> None:
        from vllm.distributed.weight_transfer import ipc_engine  # noqa: PLC0415

        def deliver(update_info: Any) -> None:
            if self._is_sender:
                self._client.update_weights(asdict(update_info))

        # Not packed: 0.25 lets go of a packed buffer once for every chunk that was read from it,
        # after which the learner's GPU never gets the buffer back. A whole copy of the model it is.
        ipc_engine.IPCWeightTransferEngine.trainer_send_weights(  # pyright: ignore
            self._tensors(), {"send_mode": deliver, "packed": False}
        )


def abort() -> None:
    """End what vLLM's communicators in this process do, from another thread than one that waits.

    A collective on the GPU waits for every member, also for one that is dead. Nothing may be
    enqueued from then on, which `disabled` sees to; vLLM's own `destroy` sets that too late. A
    communicator that is still being made has its first collective before vLLM hands it to anybody:
    the garbage collector alone knows it.
    """
    from vllm.distributed.device_communicators import pynccl  # noqa: PLC0415 (vLLM: seconds)

    for group in gc.get_objects():
        if type(group) is pynccl.PyNcclCommunicator and not getattr(group, "disabled", True):
            group.disabled = True
            if hasattr(group, "comm"):
                group.nccl.ncclCommAbort(group.comm)


def _has_trainer_factory() -> bool:
    from vllm.distributed.weight_transfer import factory  # noqa: PLC0415 (vLLM: seconds)

    return hasattr(factory, "WeightTransferTrainerFactory")


def _trainer_init_info(backend: str, rank: int, world_size: int, buffer_bytes: int) -> Any:
    packing: dict[str, Any] = {"packed": True, "packed_buffer_size_bytes": buffer_bytes}
    if backend == "ipc":
        from vllm.distributed.weight_transfer import ipc_engine  # noqa: PLC0415

        return ipc_engine.IPCTrainerInitInfo(rank=rank, **packing)
    from vllm.distributed.weight_transfer import nccl_engine  # noqa: PLC0415

    place = _meeting_point()
    return nccl_engine.NCCLTrainerInitInfo(rank=rank, world_size=world_size, **place, **packing)


def _weight_source(tensors: Tensors, shapes: Shapes, dtype: torch.dtype) -> Any:
    """Return the learner's tensors as vLLM's `WeightSource`, whose class exists from 0.26 on."""
    from vllm.distributed.weight_transfer.base import (  # noqa: PLC0415
        ParamMeta,
        WeightSource,
    )

    class LearnerSource(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, dtype, shape) for name, shape in shapes.items()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return tensors()

    return LearnerSource()


def _update_info(shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    name = str(dtype).removeprefix("torch.")
    return {
        "names": list(shapes),
        "dtype_names": [name] * len(shapes),
        "shapes": [list(shape) for shape in shapes.values()],
    }


def _meeting_point() -> dict[str, Any]:
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    return {"master_address": ray.util.get_node_ip_address(), "master_port": port}
