"""The process a function runs in: `python -m actors.function_process FUNCTION DESCRIPTOR`.

It reads batches of calls from the socket of that descriptor and sends one reply per call, in JSON:
what this process says is data to its parent, never pickled objects. It imports little, so that it
starts at once.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

Function = Callable[..., Any]


def main(name: str, descriptor: int) -> None:
    """Answer batches until the parent hangs up."""
    _die_with_parent()
    connection = Connection(descriptor)
    try:
        function = find_function(name)
    except Exception as error:  # noqa: BLE001 — the parent raises it, with the user's key
        connection.send_bytes(json.dumps({"error": _described(error)}).encode())
        return
    connection.send_bytes(json.dumps({"ready": True}).encode())
    _serve(connection, function)


def find_function(name: str) -> Function:
    """Import the function that `module:function` names."""
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, not a function")
    return function


def reply_to(function: Function, arguments: Sequence[Any]) -> bytes:
    """Return, in JSON, {"result": …} or {"outcome": the kind of failure, "error": text}."""
    try:
        result = function(*arguments)
    except Exception as error:  # noqa: BLE001 — one call fails, not the run
        return json.dumps({"outcome": "raised", "error": _described(error)}).encode()
    try:
        # Numbers of numpy and torch are none of JSON's, and become floats.
        return json.dumps({"result": result}, default=float).encode()
    except Exception:  # noqa: BLE001 — float() runs code of the result's own
        said = f"it returned a {type(result).__name__}"
        return json.dumps({"outcome": "no_json", "error": said}).encode()


def _serve(connection: Connection, function: Function) -> None:
    own_pid = os.getpid()
    while True:
        try:
            batch = json.loads(connection.recv_bytes())
        except EOFError:
            return
        for arguments in batch:
            reply = reply_to(function, arguments)
            if os.getpid() != own_pid:
                # A child that the function forked came back up to here; it has no say.
                os._exit(0)
            connection.send_bytes(reply)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even while the function hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
