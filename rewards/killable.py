"""A verifier in a process that can be killed: a hung or crashed one costs one answer.

Invariant: every answer gets exactly one outcome, in order. The process persists from batch to
batch, so that an answer costs two messages; it is replaced only after a hang or a crash.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from configs.errors import UserError

log = logging.getLogger(__name__)

START_DEADLINE_S = 120.0
"""For importing the verifier's module."""

Call = tuple[str, str, str | None]
"""(query, answer, reference)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one answer: `kind` is scored, hung, crashed, raised or no_number."""

    kind: str
    score: float | None = None


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


class KillableVerifier:
    """The verifier `function` in a persistent process. Not thread-safe.

    Linux kills the process when the *thread* that started it ends: call from one lasting thread.
    """

    def __init__(self, function: str, answer_deadline_s: float, key: str) -> None:
        """Start the process.

        Args:
            function: `module:function`.
            answer_deadline_s: Seconds for one answer.
            key: Where the run's configuration names the function, for messages.

        Raises:
            UserError: There is no such module or function, or its import fails or hangs.
        """
        self._function = function
        self._deadline_s = answer_deadline_s
        self._key = key
        self._worker: _Worker | None = self._start()

    def verify(self, calls: Sequence[Call]) -> list[Outcome]:
        """Return the outcome of each call, in order."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(calls):
            outcomes += self._attempt(calls[len(outcomes) :])
        return outcomes

    def close(self) -> None:
        """Kill the process."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _attempt(self, calls: Sequence[Call]) -> list[Outcome]:
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
            # An idle process has nothing to say: this is its end. No answer is to blame.
            log.warning("%s: the process of %s died while idle", self._key, self._function)
            self.close()
        if self._worker is None:
            self._worker = self._start()
        return self._worker

    def _outcome(self, call: Call, reply: dict[str, Any]) -> Outcome:
        if "score" in reply:
            return Outcome("scored", reply["score"])
        log.warning("%s: %s; answer %.80r", self._key, reply["error"], call[1])
        return Outcome(reply["outcome"])

    def _lose(self, kind: str, call: Call) -> Outcome:
        log.warning("%s: %s %s; answer %.80r", self._key, self._function, kind, call[1])
        self.close()
        return Outcome(kind)

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        # -P: modules come from PYTHONPATH, not from wherever this process happens to be.
        command = [sys.executable, "-P", "-m", "rewards.verifier_process", self._function]
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


async def score_apart(
    function: str, answer_deadline_s: float, key: str, calls: Sequence[Call]
) -> list[float | None]:
    """Return the score of each call, in order, from a process that is gone afterwards.

    None where the verifier hung, crashed, raised or returned no number. Cancelled, it ends after
    the answer in hand. Arguments and errors are those of `KillableVerifier`.
    """
    loop = asyncio.get_running_loop()
    # One thread from start to end: the process ends with the thread that started it.
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=key)
    try:
        verifier = await loop.run_in_executor(
            thread, KillableVerifier, function, answer_deadline_s, key
        )
        try:
            return [await loop.run_in_executor(thread, _score, verifier, call) for call in calls]
        finally:
            await loop.run_in_executor(thread, verifier.close)
    finally:
        thread.shutdown(wait=False)


def _score(verifier: KillableVerifier, call: Call) -> float | None:
    (outcome,) = verifier.verify([call])
    return outcome.score
