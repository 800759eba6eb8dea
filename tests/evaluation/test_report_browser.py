"""The reports in a real browser, at desktop and phone width."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evaluation.report import write_report
from evaluation.report_experiment import write_experiment_report
from tests.evaluation.synthetic import compared, evaluate, make_experiment, make_run, watch

QUIET = (
    "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync --disable-quic"
).split()
TOO_WIDE = """
JSON.stringify([...document.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect();
  return box.right > innerWidth + 1 && !element.closest(".scroll *") && box.width > 0;
}).map(element => element.outerHTML.slice(0, 200)))
"""
"""Elements that reach out of the page; tables may, inside a box that scrolls."""
CUT_OFF = """
JSON.stringify([...document.querySelectorAll("svg text")].filter(text => {
  const box = text.getBoundingClientRect(), svg = text.closest("svg").getBoundingClientRect();
  return box.width > 0 && (box.left < svg.left - 2 || box.right > svg.right + 2
    || box.top < svg.top - 2 || box.bottom > svg.bottom + 2);
}).map(text => text.textContent))
"""
"""Words of a chart that reach out of it."""


class Browser:
    """Chromium over its debugging pipe: messages are JSON, each ended by a NUL."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands = os.fdopen(commands, "wb", buffering=0)
        self._replies = os.fdopen(replies, "rb")
        self._number = 0
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile goes to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (reply := self._read()).get("id") != self._number:
            self.events.append(reply)
        assert "error" not in reply, reply
        return reply["result"]

    def show(self, page: Path, width: int, height: int = 900) -> None:
        """Load a page into a window of that size, to its end."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=script)["result"]["value"]

    def close(self) -> None:
        """End the browser."""
        self._session = {}
        self.call("Browser.close")
        self._commands.close()
        self._replies.close()

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._replies.read(1)) != b"\0":
            assert byte, "the browser has gone"
            text += byte
        return json.loads(text)


def pipe() -> tuple[int, int]:
    """A pipe whose descriptors are not 3 and 4, which the browser's are to become."""
    ends = os.pipe()
    reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return reading, writing


@contextmanager
def browser(chromium: str, profile: Path) -> Iterator[Browser]:
    """A browser without a window; it reads commands from its descriptor 3 and answers on 4."""
    (their_in, our_out), (our_in, their_out) = pipe(), pipe()

    def place() -> None:
        os.dup2(their_in, 3)
        os.dup2(their_out, 4)

    command = [chromium, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    with subprocess.Popen(
        command, close_fds=False, preexec_fn=place, stderr=subprocess.DEVNULL
    ) as process:
        os.close(their_in)
        os.close(their_out)
        try:
            opened = Browser(our_out, our_in)
            yield opened
            opened.close()
            process.wait(30)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's page with all that a page can have, and an experiment's."""
    folder = tmp_path_factory.mktemp("reports")
    run = evaluate(evaluate(watch(make_run(folder / "run", 12)), 6), 12)
    config, stages = make_experiment(folder / "experiment", 4)
    for chain in (chain for by_seed in stages.values() for chain in by_seed.values()):
        for stage in (stage for stage in chain if stage.is_dir()):
            (stage / "report.html").write_text("")
    page = write_experiment_report(config, stages, *compared(stages), ["a stage failed"])
    return {"run": write_report(run), "experiment": page}


@pytest.mark.parametrize("name", ["run", "experiment"])
def test_the_page_shows_in_a_browser(debian_program, tmp_path: Path, pages, name: str):
    with browser(debian_program("chromium", "chromium"), tmp_path) as chromium:
        for width in (1280, 390):
            chromium.show(pages[name], width)
            happened = {event["method"] for event in chromium.events}
            assert not happened & {"Log.entryAdded", "Runtime.exceptionThrown"}
            assert "Runtime.consoleAPICalled" not in happened
            requests = [e for e in chromium.events if e["method"] == "Network.requestWillBeSent"]
            assert len(requests) == 1
            assert chromium.evaluate("innerWidth") == width
            assert chromium.evaluate("document.documentElement.scrollWidth") <= width
            assert json.loads(chromium.evaluate(TOO_WIDE)) == []
            assert json.loads(chromium.evaluate(CUT_OFF)) == []
            assert chromium.evaluate("document.querySelectorAll('svg').length") >= 10
            assert chromium.evaluate("document.querySelectorAll('main script').length") == 0
