"""The program that tests a solution inside a sandbox, so that the solution cannot fake the result.

Tests and solution are two processes. The solution's has neither the tests nor a way to the verdict:
it can only answer calls, and what it returns is rebuilt here out of plain values. So no object of
its own compares equal to everything, nothing that the tests use can be replaced, no frame or file
holds the expected values, and an early end is the end of the tests, not their success. An object
that is no plain value stays where it is, and a `Remote` stands for it on the other side.

Standard input is the job, {"solution", "names", "modules", "tests"} in JSON; standard output the
verdict, {"passed": true} or {"passed": false, "error", "ended"}. What either side prints goes to
standard error. It sees nothing but the standard library.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import socket
import struct
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

MOST_BYTES = 1 << 24
"""Of one message; a longer one ends the trial."""
_EXACTLY: dict[type, Callable[[Any], Any]]
_EXACTLY = {int: int.__int__, float: float.__float__, str: str.__str__}
_SEQUENCES = (list, tuple, set, frozenset)
_NUMBERS = {"Fraction": "fractions", "Decimal": "decimal"}


class HungUp(BaseException):
    """The other side is gone. No `except Exception` of the tests catches it."""


class Remote:
    """Stands for an object of the other process.

    What it is compared with must be of that process too: otherwise it is not equal. It has no
    arithmetic and no order, since the other process would choose the result.
    """

    __slots__ = ("_number", "_peer")

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._peer.ask("equal", self, other) is True

    def __hash__(self) -> int:
        return hash(self._number)

    def __bool__(self) -> bool:
        return self._peer.ask("truth", self) is True

    def __len__(self) -> int:
        return self._peer.ask("length", self)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("item", self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._peer.ask("list", self))

    def __next__(self) -> Any:
        return self._peer.ask("next", self)

    def __str__(self) -> str:
        return str(self._peer.ask("text", self))


ANSWERS: dict[str, Callable[..., Any]] = {
    "get": getattr,
    "set": setattr,
    "equal": lambda one, other: bool(one == other),
    "truth": bool,
    "length": len,
    "item": lambda thing, key: thing[key],
    "list": list,
    "next": next,
    "text": str,
}
"""What the solution's process does for the other, beside calls."""


class Peer:
    """One side of the conversation: asks the other, and answers what it asks meanwhile."""

    def __init__(self, connection: socket.socket, answers: dict[str, Callable[..., Any]]) -> None:
        self._stream = connection.makefile("rwb")
        self._answers = answers
        self._shared: list[Any] = []
        """Own objects that the other side has a `Remote` of, by their number."""

    def ask(self, operation: str, *values: Any) -> Any:
        """Have the other side do one thing, and return its result or raise its error."""
        self._send(["ask", operation, self._encode(list(values))])
        return self._decode(self._reply(operation)[1])

    def call(self, function: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the other side; lists and the like that it changes change here too."""
        self._send(["ask", "call", self._encode([function, list(args), kwargs])])
        _, result, changed = self._reply("call")
        for place, content in changed:
            _become(args[place], self._decode(content))
        return self._decode(result)

    def serve(self) -> None:
        """Answer until the other side hangs up."""
        while True:
            self._answer(self._receive())

    def _reply(self, operation: str) -> list[Any]:
        while True:
            message = self._receive()
            if message[0] == "raise":
                raise _error(message[1], message[2], may_end=operation == "next")
            if message[0] == "result":
                return message
            self._answer(message)

    def _answer(self, message: list[Any]) -> None:
        _, operation, values = message
        try:
            if operation == "call":
                reply = self._called(*values[1])
            else:
                reply = ["result", self._encode(self._answers[operation](*self._decode(values)))]
        except Exception as error:  # noqa: BLE001 — it is the other side's
            reply = ["raise", *_described(error)]
        self._send(reply)

    def _called(self, function: list[Any], sent: list[Any], keywords: list[Any]) -> list[Any]:
        """Call one of the objects that the other side was given, nothing else it may name."""
        args, kwargs = self._decode(sent), self._decode(keywords)
        result = self._encode(self._shared[function[1]](*args, **kwargs))
        now = [self._encode(arg) for arg in args]
        changed = [[i, after] for i, after in enumerate(now) if after != sent[1][i]]
        return ["result", result, changed]

    def _send(self, message: list[Any]) -> None:
        data = json.dumps(message).encode()
        self._stream.write(struct.pack("!Q", len(data)) + data)
        self._stream.flush()

    def _receive(self) -> list[Any]:
        try:
            head = self._stream.read(8)
        except ConnectionError:
            head = b""
        if len(head) < 8:
            raise HungUp
        (size,) = struct.unpack("!Q", head)
        if size > MOST_BYTES:
            raise ValueError(f"a message of {size} bytes")
        return json.loads(self._stream.read(size))

    def _encode(self, value: Any) -> Any:
        """Return plain values as JSON; anything else is shared and becomes a `Remote` there."""
        if type(value).__module__ == "numpy" and not getattr(value, "shape", True):
            value = value.item()
        if value is None or isinstance(value, bool):
            return value
        for plain, exactly in _EXACTLY.items():
            if isinstance(value, plain):  # of a subclass, too: only what it is as a plain value
                return exactly(value)
        for plain in _SEQUENCES:
            if isinstance(value, plain):
                return [plain.__name__, [self._encode(item) for item in value]]
        if isinstance(value, dict):
            return ["dict", [[self._encode(k), self._encode(v)] for k, v in value.items()]]
        if isinstance(value, Remote):
            return ["yours", value._number]
        return self._encode_rarer(value)

    def _encode_rarer(self, value: Any) -> list[Any]:
        name = type(value).__name__
        if isinstance(value, bytes | bytearray):
            return [name, value.hex()]
        if isinstance(value, complex):
            return [name, value.real, value.imag]
        if isinstance(value, range):
            return [name, value.start, value.stop, value.step]
        if name in _NUMBERS and type(value).__module__ == _NUMBERS[name]:
            return [name, str(value)]
        if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
            return ["type", value.__name__]
        self._shared.append(value)
        return ["mine", len(self._shared) - 1]

    def _decode(self, data: Any) -> Any:
        """Return a new value; whatever the other side sends, none of its code runs here."""
        if not isinstance(data, list):
            return data
        kind, *parts = data
        if kind == "dict":
            return {self._decode(key): self._decode(value) for key, value in parts[0]}
        if kind in ("list", "tuple", "set", "frozenset"):
            return getattr(builtins, kind)(map(self._decode, parts[0]))
        if kind == "mine":
            return Remote(self, int(parts[0]))
        if kind == "yours":
            return self._shared[parts[0]]
        if kind in ("bytes", "bytearray"):
            return getattr(builtins, kind).fromhex(parts[0])
        if kind in ("complex", "range"):
            return getattr(builtins, kind)(*parts)
        if kind in _NUMBERS:
            return getattr(importlib.import_module(_NUMBERS[kind]), kind)(parts[0])
        if kind == "type" and isinstance(getattr(builtins, parts[0], None), type):
            return getattr(builtins, parts[0])
        raise ValueError(f"unknown kind of value {kind!r:.80}")


def _described(error: BaseException) -> tuple[str, str]:
    """The nearest built-in class of an error, and its text."""
    nearest = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    own = "" if nearest is type(error) else f"{type(error).__name__}: "
    return nearest.__name__, f"{own}{error}"[:1000]


def _error(name: str, text: str, *, may_end: bool) -> Exception:
    """The other side's error, as one of the same built-in class.

    StopIteration only where it `may_end` an iterator: raised by a call it would end the tests'
    `all(map(…))` early, as a success. It becomes a RuntimeError, as in a generator.
    """
    kind = getattr(builtins, name, None)
    ends = isinstance(kind, type) and issubclass(kind, StopIteration)
    if isinstance(kind, type) and issubclass(kind, Exception) and (may_end or not ends):
        with suppress(TypeError):  # a class that takes more than a text
            return kind(text)
    return RuntimeError(f"{name}: {text}")


def _become(old: Any, new: Any) -> None:
    """Give a container the content it has on the other side."""
    if type(old) is not type(new):
        return
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)


def main() -> None:
    """Be both sides of the trial, and write the verdict."""
    sys.set_int_max_str_digits(0)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _be_the_solution(theirs)
    theirs.close()
    verdict_out = os.dup(1)
    os.dup2(2, 1)
    verdict = _verdict(json.load(sys.stdin), Peer(ours, {}), child)
    os.write(verdict_out, json.dumps(verdict).encode())
    os._exit(0)


def _be_the_solution(connection: socket.socket) -> NoReturn:
    """Answer the tests' calls; in a process that has none of their descriptors."""
    own = connection.fileno()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    os.closerange(3, own)
    os.closerange(own + 1, 1024)
    namespace = _module("solution")

    def define(source: str) -> None:
        exec(compile(source, "<solution>", "exec"), namespace)

    try:
        Peer(connection, {**ANSWERS, "define": define, "name": namespace.__getitem__}).serve()
    finally:
        os._exit(1)


def _verdict(job: dict[str, Any], solution: Peer, child: int) -> dict[str, Any]:
    try:
        solution.ask("define", job["solution"])
        namespace = _module("tests")
        for name in job["modules"]:
            namespace[name] = importlib.import_module(name)
        for name in job["names"]:
            with suppress(KeyError):  # not defined: a NameError of the tests
                namespace[name] = solution.ask("name", name)
        exec(compile(job["tests"], "<tests>", "exec"), namespace)
    except HungUp:
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return {"passed": False, "error": "the solution ended its process", "ended": ended}
    except BaseException as error:  # noqa: BLE001 — nothing that the tests raise is a success
        return {"passed": False, "error": _sentence(error, job["tests"])}
    return {"passed": True}


def _module(name: str) -> dict[str, Any]:
    """The namespace of a new module, which dataclasses and the like look for by its name."""
    sys.modules[name] = types.ModuleType(name)
    return sys.modules[name].__dict__


def _sentence(error: BaseException, tests: str) -> str:
    """What went wrong, and in which line of the tests."""
    lines, place = tests.splitlines(), ""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            place = f" at {lines[trace.tb_lineno - 1].strip()}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{place}"[:500]


if __name__ == "__main__":
    main()
