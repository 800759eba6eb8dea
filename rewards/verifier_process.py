"""The process that a verifier runs in: `python -m rewards.verifier_process FUNCTION DESCRIPTOR`.

It reads batches from the socket of that descriptor and sends one reply per answer, in JSON: what
a verifier's process says is data to its parent, never pickled objects.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

Verifier = Callable[[str, str, str | None], Any]


def main(function: str, descriptor: int) -> None:
    """Answer batches until the parent hangs up."""
    _die_with_parent()
    connection = Connection(descriptor)
    try:
        verifier = find_function(function)
    except Exception as error:  # noqa: BLE001 — the parent raises it, with the user's key
        _send(connection, {"error": _described(error)})
        return
    _send(connection, {"ready": True})
    _serve(connection, verifier)


def find_function(name: str) -> Verifier:
    """Import the function that `module:function` names."""
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, not a function")
    return function


def judge(verifier: Verifier, query: str, answer: str, reference: str | None) -> dict[str, Any]:
    """Return {"score": a finite number} or {"outcome": the kind of failure, "error": text}."""
    try:
        result = verifier(query, answer, reference)
    except Exception as error:  # noqa: BLE001 — one answer fails, not the run
        return {"outcome": "raised", "error": _described(error)}
    try:
        score = math.nan if isinstance(result, str) else float(result)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        return {"outcome": "no_number", "error": f"it returned {result!r:.200}"}
    return {"score": score}


def _serve(connection: Connection, verifier: Verifier) -> None:
    own_pid = os.getpid()
    while True:
        try:
            batch = json.loads(connection.recv_bytes())
        except EOFError:
            return
        for query, answer, reference in batch:
            reply = judge(verifier, query, answer, reference)
            if os.getpid() != own_pid:
                # A child that the verifier forked came back up to here; it has no say.
                os._exit(0)
            _send(connection, reply)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even while a verifier hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
