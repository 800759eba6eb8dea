"""The rollout engines as one, as a learner rank speaks to them during a weight transfer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayTaskError

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class MembersClient:
    """The engines as one, with the four methods that vLLM's trainer engines call.

    Each call goes to every member at once; the error of a late one names it.
    """

    def __init__(
        self, members: Mapping[str, ActorHandle], tensor_parallel: int, deadline_s: float
    ) -> None:
        self.version = 0
        self._members = dict(members)
        self._tensor_parallel = tensor_parallel
        self._deadline_s = deadline_s
        self.abort: Callable[[], None] = lambda: None
        self._failure: Exception | None = None

    @property
    def world_size(self) -> int:
        """Ranks of the NCCL group: the sender and each engine's tensor-parallel ranks."""
        return 1 + len(self._members) * self._tensor_parallel

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect each member, at the rank of its own."""
        infos = [self._for_member(i, init_info) for i in range(len(self._members))]
        self._call("init_transfer", infos)

    def start_weight_update(self) -> None:
        """Let no engine step."""
        self._call("start_update")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Let each engine receive what the message describes; `abort` where one does not.

        vLLM calls this beside the broadcast, which without an abort would wait for a lost member
        for ever.
        """
        try:
            self._call("load_update", [update_info] * len(self._members))
        except Exception:
            self.abort()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:  # noqa: ARG002
        """Let the engines go on with the new weights, as `self.version`."""
        self._call("finish_update", [self.version] * len(self._members))

    def _for_member(self, index: int, init_info: dict[str, Any]) -> dict[str, Any]:
        if "rank_offset" not in init_info:
            return init_info
        offset = init_info["rank_offset"] + index * self._tensor_parallel
        return init_info | {"rank_offset": offset}

    @contextlib.contextmanager
    def causes(self) -> Iterator[None]:
        """Raise an engine's failure where the sender has met something that follows from it: one
        that never comes to the meeting point is a timeout of the store there."""
        self._failure = None
        try:
            yield
        except Exception as error:
            if self._failure is None or self._failure is error:
                raise
            raise self._failure from error

    def _call(self, method: str, arguments: Sequence[Any] | None = None) -> None:
        try:
            self._await(method, arguments)
        except Exception as error:
            self._failure = error
            raise

    def _await(self, method: str, arguments: Sequence[Any] | None) -> None:
        refs = {}
        for i, (name, member) in enumerate(self._members.items()):
            remote = getattr(member, method).remote
            refs[name] = remote() if arguments is None else remote(arguments[i])
        deadline = time.monotonic() + self._deadline_s
        pending = list(refs.values())
        while pending:
            left = max(0.0, deadline - time.monotonic())
            done, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not done:
                names = [name for name, ref in refs.items() if ref in pending]
                raise TimeoutError(
                    f"publish: {names} have not answered {method} in {self._deadline_s} s"
                )
            # The first that fails ends the wait: the others may be blocked because of it.
            _answer(done[0])


def _answer(ref: ray.ObjectRef[Any]) -> None:
    """Raise what a member's call raised, as it was raised there."""
    try:
        ray.get(ref)
    except RayTaskError as error:
        raise error.cause from error
