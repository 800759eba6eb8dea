"""The rollout engines as one, as a learner rank speaks to them during a weight transfer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayTaskError

from actors.member import LOST

if TYPE_CHECKING:
    from ray.actor import ActorHandle

CONNECT_S = 240.0
"""Most seconds in which the members connect: the store where they meet gives up after 300, with an
error that names nobody."""
NEWS_S = 10.0
"""Ray knows so long after a process's death that it is dead."""


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
        """Ends what waits for the members on the sender's side."""
        self.connected: Future[None] = Future()
        """Done when every member has connected, or with the error of the first that could not."""
        self._failure: Exception | None = None

    @property
    def world_size(self) -> int:
        """Ranks of the NCCL group: the sender and each engine's tensor-parallel ranks."""
        return 1 + len(self._members) * self._tensor_parallel

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect each member, at the rank of its own; `abort` where one does not.

        vLLM calls this beside its own end of the connection, which waits for every member.
        """
        infos = [self._for_member(i, init_info) for i in range(len(self._members))]
        try:
            self._call("init_transfer", infos, min(self._deadline_s, CONNECT_S))
        except Exception as error:
            try:
                self.abort()
            finally:
                self.connected.set_exception(error)
            raise
        self.connected.set_result(None)

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

    def _call(
        self, method: str, arguments: Sequence[Any] | None = None, limit_s: float | None = None
    ) -> None:
        try:
            self._await(method, arguments, self._deadline_s if limit_s is None else limit_s)
        except Exception as error:
            self._failure = error
            raise

    def _await(self, method: str, arguments: Sequence[Any] | None, limit_s: float) -> None:
        refs = {}
        for i, (name, member) in enumerate(self._members.items()):
            remote = getattr(member, method).remote
            refs[name] = remote() if arguments is None else remote(arguments[i])
        deadline = time.monotonic() + limit_s
        pending, error = list(refs.values()), None
        while pending:
            left = max(0.0, deadline - time.monotonic())
            done, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not done:
                break
            try:
                _answer(done[0])
            except LOST:
                # It ends the wait: the others may be blocked because of it.
                raise
            except Exception as refused:  # noqa: BLE001 (raised below)
                # What the others say when one dies under them comes before the news of its death.
                error = error or refused
                deadline = min(deadline, time.monotonic() + NEWS_S)
        if error is not None:
            raise error
        if pending:
            names = [name for name, ref in refs.items() if ref in pending]
            raise TimeoutError(f"publish: {names} have not answered {method} in {limit_s:g} s")


def _answer(ref: ray.ObjectRef[Any]) -> None:
    """Raise what a member's call raised, as it was raised there."""
    try:
        ray.get(ref)
    except RayTaskError as error:
        raise error.cause from error
