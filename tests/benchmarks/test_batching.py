"""Continuous batching by hand: moments, rates, versions, and what is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from benchmarks.batching import DONE, Decoder, Engine, Span
from benchmarks.virtual_time import run


def played(
    decoder: Decoder, script: Callable[[Engine, list], Awaitable[None]]
) -> tuple[list, dict[str, float]]:
    """The (name, moment, spans) of the calls in the order of their ends, and the usage."""

    async def main() -> tuple[list, dict[str, float]]:
        usage = dict.fromkeys(DONE, 0.0)
        engine, ended = Engine(decoder, usage), []
        engine.start()
        await script(engine, ended)
        engine.settle()
        return ended, usage

    return run(main())


async def call(engine: Engine, ended: list, name: str, *lengths: int) -> None:
    spans = await engine.submit(lengths, list)
    ended.append((name, round(asyncio.get_running_loop().time(), 6), spans))


def test_one_call_ends_with_its_longest_sequence():
    async def script(engine: Engine, ended: list) -> None:
        await call(engine, ended, "a", 2, 5, 3)

    ended, usage = played(Decoder(1.0, 0.0, 8), script)
    assert ended == [("a", 5.0, [Span(0, 0)] * 3)]
    assert usage == pytest.approx(
        {"idle_s": 0, "updating_s": 0, "decoding_s": 5, "sequence_s": 10, "tokens": 10}
    )


def test_the_rate_follows_the_size_of_the_batch():
    async def script(engine: Engine, ended: list) -> None:
        await asyncio.gather(call(engine, ended, "short", 10), call(engine, ended, "long", 20))

    # Two at once: 3 s a step, for 10 steps; then one alone: 2 s a step for the other 10.
    ended, usage = played(Decoder(1.0, 1.0, 8), script)
    assert [(name, at) for name, at, _ in ended] == [("short", 30.0), ("long", 50.0)]
    assert usage["tokens"] == pytest.approx(30)


def test_one_that_joins_later_slows_the_others_down():
    async def script(engine: Engine, ended: list) -> None:
        first = asyncio.create_task(call(engine, ended, "first", 10))
        await asyncio.sleep(10)  # five of its tokens, at 2 s
        second = asyncio.create_task(call(engine, ended, "second", 10))
        await asyncio.gather(first, second)

    # At 10 s both go on at 3 s a step: the first is done at 25 s, the second has 5 left, at 2 s.
    ended, _ = played(Decoder(1.0, 1.0, 8), script)
    assert [(name, at) for name, at, _ in ended] == [("first", 25.0), ("second", 35.0)]


def test_what_finds_no_room_waits_in_order():
    async def script(engine: Engine, ended: list) -> None:
        await asyncio.gather(*(call(engine, ended, name, 4) for name in "abc"))

    ended, _ = played(Decoder(1.0, 0.0, 2), script)
    assert [(name, at) for name, at, _ in ended] == [("a", 4.0), ("b", 4.0), ("c", 8.0)]


def test_an_update_stops_the_decoding_and_is_seen_in_the_versions():
    async def script(engine: Engine, ended: list) -> None:
        across = asyncio.create_task(call(engine, ended, "across", 3, 10))
        await asyncio.sleep(5)
        engine.hold()
        meanwhile = asyncio.create_task(call(engine, ended, "meanwhile", 2))
        await asyncio.sleep(7)
        engine.release(4)
        await asyncio.gather(across, meanwhile)

    ended, usage = played(Decoder(1.0, 0.0, 8), script)
    # The short one was done before; who was to begin meanwhile begins with the new weights.
    assert ended == [("meanwhile", 14.0, [Span(4, 4)]), ("across", 17.0, [Span(0, 0), Span(0, 4)])]
    assert (usage["updating_s"], usage["decoding_s"]) == (7, 10)


def test_idle_time_is_what_is_left():
    async def script(engine: Engine, ended: list) -> None:
        await asyncio.sleep(3)
        await call(engine, ended, "a", 2)
        await asyncio.sleep(4)

    _, usage = played(Decoder(1.0, 0.0, 8), script)
    assert (usage["idle_s"], usage["decoding_s"]) == (7, 2)


def test_the_end_of_an_engine_tells_the_calls_and_tokens_that_were_for_nothing():
    lost: list[tuple[int, float]] = []

    async def script(engine: Engine, ended: list) -> None:
        await call(engine, ended, "done", 4)
        for lengths in ([2, 100], [100]):
            engine.submit(lengths, list)
        await asyncio.sleep(10)
        engine.freeze()
        await asyncio.sleep(50)  # silent: nothing more is decoded
        lost.append(engine.halt())

    ended, usage = played(Decoder(1.0, 0.0, 8), script)
    assert lost == [(2, pytest.approx(2 + 10 + 10))]
    assert usage["tokens"] == pytest.approx(4 + 22)
    assert usage["decoding_s"] + usage["idle_s"] == pytest.approx(14)
    assert [name for name, *_ in ended] == ["done"]
