"""A user's function in a process that can be killed: where it hangs or crashes, one call is lost.

Invariant: every call gets exactly one outcome, in order. The process persists from call to call,
so that a call costs two messages; it is replaced only after a hang or a crash.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from configs.errors import UserError

log = logging.getLogger(__name__)

START_DEADLINE_S = 120.0
"""For importing the function's module."""

Arguments = Sequence[Any]
"""Of one call; they travel in JSON."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call: `kind` is returned, hung, crashed, raised, or no_json where the
    result is none that JSON can carry."""

    kind: str
    result: Any = None


@dataclass(slots=True)
class _Worker:
    """The process and our end of its socket."""

    process: subprocess.Popen[bytes]
    connection: Connection

    def receive(self, deadline_s: float) -> dict[str, Any]:
        """Return its next message; TimeoutError, or EOFError or OSError where it is dead."""
        if not self.connection.poll(deadline_s):
            raise TimeoutError
        return json.loads(self.connection.recv_bytes())

    def kill(self) -> None:
        """Kill the process and its descendants in its process group."""
        # Before wait(): until then the group's number cannot belong to another one.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()


class KillableFunction:
    """`function` in a persistent process, which the first use starts. Not thread-safe.

    Linux kills the process when the *thread* that started it ends: call from one lasting thread.
    """

    def __init__(self, function: str, deadline_s: float, key: str) -> None:
        """Take what to call.

        Args:
            function: `module:function`.
            deadline_s: Seconds for one call.
            key: Where the run's configuration names the function, for messages.
        """
        self._function = function
        self._deadline_s = deadline_s
        self._key = key
        self._worker: _Worker | None = None

    def start(self) -> None:
        """Have a living process.

        Raises:
            UserError: There is no such module or function, or its import fails or hangs.
        """
        self._living_worker()

    def call(self, calls: Sequence[Arguments]) -> list[Outcome]:
        """Return the outcome of each call, in order; raises what `start` does."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(calls):
            outcomes += self._attempt(calls[len(outcomes) :])
        return outcomes

    def close(self) -> None:
        """Kill the process."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _attempt(self, calls: Sequence[Arguments]) -> list[Outcome]:
        """Return the outcomes up to and including the first that costs the process its life."""
        worker = self._living_worker()
        outcomes: list[Outcome] = []
        try:
            worker.connection.send_bytes(json.dumps(calls).encode())
            for call in calls:
                outcomes.append(self._outcome(call, worker.receive(self._deadline_s)))
        except TimeoutError:
            outcomes.append(self._lose("hung", calls[len(outcomes)]))
        except (EOFError, OSError):
            outcomes.append(self._lose("crashed", calls[len(outcomes)]))
        return outcomes

    def _living_worker(self) -> _Worker:
        if self._worker is not None and self._worker.connection.poll(0):
            # An idle process has nothing to say: this is its end. No call is to blame.
            log.warning("%s: the process of %s died while idle", self._key, self._function)
            self.close()
        if self._worker is None:
            self._worker = self._start()
        return self._worker

    def _outcome(self, call: Arguments, reply: dict[str, Any]) -> Outcome:
        if "result" in reply:
            return Outcome("returned", reply["result"])
        log.warning("%s: %s; given %s", self._key, reply["error"], shown(call))
        return Outcome(reply["outcome"])

    def _lose(self, kind: str, call: Arguments) -> Outcome:
        log.warning("%s: %s %s; given %s", self._key, self._function, kind, shown(call))
        self.close()
        return Outcome(kind)

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        # -P: modules come from PYTHONPATH, not from wherever this process happens to be.
        command = [sys.executable, "-P", "-m", "actors.function_process", self._function]
        with theirs:
            process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            )
        worker = _Worker(process, Connection(ours.detach()))
        try:
            reply = worker.receive(START_DEADLINE_S)
        except TimeoutError:
            reply = {"error": f"its import takes more than {START_DEADLINE_S:g} s"}
        except (EOFError, OSError):
            reply = {"error": "its import ends the process"}
        if "error" in reply:
            worker.kill()
            raise UserError(f"{self._key} {self._function!r} cannot be used: {reply['error']}")
        return worker


class AwaitableFunction:
    """A `KillableFunction` for asyncio: while it runs or hangs, the loop goes on.

    Calls queue up, in order. One that is cancelled while it runs still runs to its end or deadline,
    and `close` waits for that.
    """

    def __init__(self, function: str, deadline_s: float, key: str) -> None:
        """Take what to call; arguments are those of `KillableFunction`."""
        # One thread from start to end: the process ends with the thread that started it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=key)
        self._function = KillableFunction(function, deadline_s, key)

    async def start(self) -> None:
        """Have a living process; raises what `KillableFunction.start` does."""
        await self._run(self._function.start)

    async def call(self, *arguments: Any) -> Outcome:
        """Return what becomes of one call; raises what `start` does."""
        (outcome,) = await self._run(lambda: self._function.call([arguments]))
        return outcome

    async def close(self) -> None:
        """Kill the process; nothing may be called afterwards."""
        try:
            await self._run(self._function.close)
        finally:
            self._thread.shutdown(wait=False)

    async def _run(self, task: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, task)


def shown(arguments: Arguments) -> str:
    """A call's arguments, each in short, for a message."""
    return ", ".join(repr(argument)[:80] for argument in arguments)
