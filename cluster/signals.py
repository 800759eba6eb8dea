"""The signals that ask a command to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def caught_signals() -> list[signal.Signals]:
    """Those to answer: one that is ignored is so on purpose, as nohup does."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def answering(answer: Callable[[signal.Signals], None]) -> Iterator[Callable[[], None]]:
    """Call `answer` in the running loop at each of them; gives what ignores them from then on.

    A command that cleans up ignores them: whoever asks for an end now has it already, and half a
    clean-up leaves processes. What was set before is set again at the end.
    """
    loop, caught = asyncio.get_running_loop(), caught_signals()
    before = {number: signal.getsignal(number) for number in caught}
    for number in caught:
        loop.add_signal_handler(number, answer, number)

    def ignore() -> None:
        for number in caught:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    try:
        yield ignore
    finally:
        ignore()
        for number, handler in before.items():
            signal.signal(number, handler)
