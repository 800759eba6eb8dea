"""The clock that jumps: order, deadlines, threads, and what would hang."""

from __future__ import annotations

import asyncio
import time

import pytest

from benchmarks.virtual_time import DeadlockError, run

YEAR = 365 * 24 * 3600.0


def now() -> float:
    return asyncio.get_running_loop().time()


def test_sleeps_end_in_their_order_and_take_no_real_time():
    async def main() -> list[tuple[str, float]]:
        ended: list[tuple[str, float]] = []

        async def sleep(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            ended.append((name, now()))

        await asyncio.gather(sleep("year", YEAR), sleep("day", 86400), sleep("none", 0))
        return ended

    before = time.process_time()
    assert run(main()) == [("none", 0.0), ("day", 86400.0), ("year", pytest.approx(YEAR))]
    # The clock that would hang here is the wall's; a loop that turns would burn this one.
    assert time.process_time() - before < 60


def test_what_is_ready_goes_before_the_clock_moves():
    async def main() -> tuple[float, int]:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            for _ in range(1000):
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.create_task(turn())
        await asyncio.sleep(1e-6)
        await task
        return now(), turns

    assert run(main()) == (pytest.approx(1e-6), 1000)


def test_a_deadline_ends_a_wait_at_its_moment():
    async def main() -> list[float]:
        ends = []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 600)
        ends.append(now())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600):
                await asyncio.sleep(601)
        ends.append(now())
        await asyncio.wait_for(asyncio.sleep(599), 600)  # a deadline that is met costs nothing
        await asyncio.sleep(10)
        return [*ends, now()]

    assert run(main()) == [600, 1200, 1809]


def test_work_for_a_thread_is_done_at_a_standstill_and_its_error_is_its_callers():
    async def main() -> float:
        ticking = asyncio.create_task(asyncio.sleep(1))
        assert await asyncio.to_thread(sum, [1, 2]) == 3
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        assert not ticking.done()
        ticking.cancel()
        return now()

    assert run(main()) == 0.0


@pytest.mark.parametrize("waiting_for", ["an event", "each other"])
def test_a_deadlock_is_an_error_that_names_who_waits(waiting_for):
    async def main() -> None:
        if waiting_for == "an event":
            await asyncio.sleep(5)
            await asyncio.Event().wait()
        lock = asyncio.Lock()
        async with lock:
            await asyncio.create_task(lock.acquire(), name="the second one")

    with pytest.raises(DeadlockError, match=r"no timer is set.*Task-|no timer.*the second one"):
        run(main())


def test_a_loop_can_be_used_again_after_a_deadlock():
    async def stuck() -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        run(stuck())
    assert run(asyncio.sleep(3, "on time")) == "on time"
