"""A small OpenAI-compatible endpoint in this process, that answers, fails or waits as told."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = "good"
"""The judge here prefers the output that says so."""


@dataclass(frozen=True)
class Says:
    """One HTTP answer."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    raw: bytes | None = None


def completion(text: str, top: list[tuple[str, float]] | None = None) -> Says:
    logprobs = None
    if top is not None:
        listed = [{"token": t, "logprob": p, "bytes": None} for t, p in top]
        logprobs = {"content": [{**listed[0], "top_logprobs": listed}]}
    choice = {
        "index": 0, "finish_reason": "stop", "logprobs": logprobs,
        "message": {"role": "assistant", "content": text},
    }  # fmt: skip
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return Says(body={"id": "x", "object": "chat.completion", "created": 0, "model": "judge",
                      "choices": [choice], "usage": usage})  # fmt: skip


def fair(prompt: str) -> Says:
    """The verdict of a judge that reads both answers; a tie where both or none are good."""
    first, second = (
        GOOD in re.findall(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, re.DOTALL)[-1]
        for tag in ("first_answer", "second_answer")
    )
    word = "tie" if first == second else "1" if first else "2"
    return completion(f"One is better.\n<verdict>{word}</verdict>")


Script = Callable[[int, str], Says | None]
"""(number of the request from 0, its prompt) -> what is said; None is a fair verdict."""


class JudgeServer:
    """Serves while it is entered; remembers what it was asked and what it answered."""

    def __init__(self, script: Script = lambda number, prompt: None, port: int = 0) -> None:
        self.script = script
        self.prompts: list[str] = []
        self.paid: list[str] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._port = port

    def __enter__(self) -> JudgeServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                outer._serve(self)

        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        prompt = body["messages"][0]["content"]
        with self._lock:
            number = len(self.prompts)
            self.prompts.append(prompt)
            self.bodies.append(body)
            self.keys.append(handler.headers["authorization"])
            self.times.append(time.monotonic())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        assert handler.path == "/v1/chat/completions"
        says = self.script(number, prompt) or fair(prompt)
        time.sleep(says.delay_s)
        with self._lock:
            self._now -= 1
            if says.status == 200 and says.raw is None:
                self.paid.append(prompt)
        payload = says.raw if says.raw is not None else json.dumps(says.body).encode()
        try:
            handler.send_response(says.status)
            for name, value in {"content-type": "application/json", **says.headers}.items():
                handler.send_header(name, value)
            handler.send_header("content-length", str(len(payload)))
            handler.end_headers()
            handler.wfile.write(payload)
        except OSError:
            pass  # the client went away: that is what some tests are about


def error(status: int, message: str, code: str | None = None, **headers: str) -> Says:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"error": {"message": message, "type": code, "code": code, "param": None}}
    return Says(status, body, named)
