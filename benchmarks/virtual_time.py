"""asyncio in virtual time: where nothing is ready, the clock jumps to the next timer.

`asyncio.sleep`, timeouts and deadlines work as they do in real time and take none of it. What
happens follows from the program alone, so a run repeats itself exactly.

Work for a thread (`asyncio.to_thread`) is done on the spot and takes no virtual time: a thread's
end would come at a real moment, which has no place on this clock.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TOLERANCE = 1e-9
"""Seconds by which asyncio calls a timer early. After 97 days they are less than the clock can
tell, and a timer would never be due that the clock does not pass."""


class DeadlockError(RuntimeError):
    """Every task waits for another one: nothing is ready, and no timer will wake any of them."""


class _JumpingSelector(selectors.DefaultSelector):
    """Looks for input and output without waiting; a wait moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            raise DeadlockError(_who_waits())
        self.now += timeout
        if self.now + TOLERANCE == self.now:
            self.now = math.nextafter(self.now, math.inf)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` begins at 0 and is virtual."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._clock.now

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Do the work at once, whatever the executor."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 (it belongs to whoever awaits the work)
            future.set_exception(error)
        return future


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in virtual time. Raises DeadlockError where `asyncio.run` would hang."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def _who_waits() -> str:
    names = sorted(task.get_name() for task in asyncio.all_tasks())
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return (
        f"nothing is ready and no timer is set at which any of {len(names)} tasks would go on:"
        f" {shown}"
    )
