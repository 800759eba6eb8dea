"""What `make chaos` counts, and the proxy that makes its network slow."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter, deque

import psutil
import pytest

from benchmarks import chaos
from benchmarks.chaos import Chaos, ends_without_cause, is_sound, schedule_of
from benchmarks.chaos_faults import KINDS
from benchmarks.chaos_stage import NotWellError, is_whole, lives
from benchmarks.proxy import Proxy


def test_a_schedule_is_the_seeds_and_has_every_kind_as_often_as_it_weighs():
    schedule = schedule_of(102, 0)
    assert Counter(schedule) == {name: kind.weight for name, kind in KINDS.items()}
    assert schedule == schedule_of(102, 0) != schedule_of(102, 1)
    assert schedule_of(204, 0) == schedule * 2


def test_a_driver_ends_only_where_it_was_struck_and_the_last_in_order():
    assert ends_without_cause(["driver_killed", "rollout_hung", "disk_full"], [-9, 2], 0) == []
    (said,) = ends_without_cause(["rollout_hung"], [1], 0)
    assert said == "drivers ended with [1], and 0 of them were struck"
    assert ends_without_cause([], [], 1) == ["the last driver ended with 1"]


@pytest.mark.parametrize(
    ("serving", "struck", "whole"), [(2, {7}, True), (1, {7}, False), (2, {8}, False)]
)
def test_a_run_is_whole_when_all_serve_and_none_of_them_was_struck(serving, struck, whole):
    fleet = {"serving": serving, "target": 2, "members": [{"pid": 8}, {"name": "starting"}]}
    assert is_whole({"fleets": {"rollout": fleet}}, struck) is whole


class Stage:
    """A run that gets well at once, for `iterations`."""

    trained = 0

    def __init__(self, iterations: int) -> None:
        self.left = iterations

    def becomes_well(self, struck: list[psutil.Process]) -> bool:
        self.left -= 1
        return self.left > 0

    def plays_on(self, more: int) -> bool:
        return self.left > 0


def struck(monkeypatch, iterations: int, answers: list[float | None]) -> Chaos:
    """What comes of a run whose strikes take `answers`."""
    of_this = Chaos(deque(["judge_hung", "disk_full"]), 0, random.Random(0))
    told = iter(answers)
    monkeypatch.setattr(chaos, "seconds_to_recover", lambda stage, kind: next(told))
    monkeypatch.setattr(chaos, "PAUSE_S", 0.0)
    of_this._strike(Stage(iterations))  # type: ignore[arg-type]
    return of_this


def test_a_fault_that_hit_nothing_strikes_again_and_is_not_counted(monkeypatch):
    done = struck(monkeypatch, 9, [None, 2.0, 3.0])
    assert done.seconds == {"judge_hung": [2.0], "disk_full": [3.0]}
    cut_short = struck(monkeypatch, 3, [None, None])
    assert (cut_short.seconds, len(cut_short.left)) == ({}, 2)


def test_strikes_that_hit_nothing_do_not_go_on_for_ever(monkeypatch):
    with pytest.raises(NotWellError, match="5 strikes of judge_hung in a row have hit nothing"):
        struck(monkeypatch, 99, [None] * 99)


def test_nothing_strikes_when_time_is_over(monkeypatch):
    late = Chaos(deque(["judge_hung"]), 0, random.Random(0), started=time.monotonic() - 5400)
    late._strike(Stage(9))  # type: ignore[arg-type]
    assert not is_sound(late.results())


def test_results_have_the_keys_of_the_project_and_are_sound_without_harm():
    done = Chaos(deque(), 0, random.Random(0), seconds={"judge_hung": [1.0, 2.0, 9.0]})
    run = {"iterations_asked": 5, "iterations_done": 5, "groups_lost": 0, "groups_doubled": 0}
    done.runs = [dict(run), dict(run)]
    results = done.results()
    assert results["faults"] == {"judge_hung": 3}
    assert (results["iterations_asked"], results["iterations_done"]) == (10, 10)
    recovered = results["seconds_to_recover"]["judge_hung"]
    assert (recovered["median"], recovered["max"]) == (2.0, 9.0)
    assert is_sound(results)
    done.runs[1]["groups_lost"] = 1
    assert not is_sound(done.results())


def test_a_process_that_has_ended_does_not_live():
    process = psutil.Popen(["sleep", "60"])
    assert lives(process)
    process.kill()
    psutil.wait_procs([process], timeout=10)
    assert not lives(process)


def test_the_proxy_passes_on_and_holds_back():
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_echo, args=(server,), daemon=True).start()
        proxy = Proxy(f"127.0.0.1:{server.getsockname()[1]}")
        host, _, port = proxy.address.rpartition(":")
        with socket.create_connection((host, int(port))) as client:
            assert _seconds(client) < 0.2
            proxy.delay_s = 0.1
            assert _seconds(client) >= 0.2  # there and back
        proxy.close()


def _echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(16):
            connection.sendall(data)


def _seconds(client: socket.socket) -> float:
    started = time.monotonic()
    client.sendall(b"hello")
    assert client.recv(16) == b"hello"
    return time.monotonic() - started
