"""One request to an OpenAI-compatible chat endpoint, and what its failures mean.

The `openai` library retries (408, 409, 429, 5xx, timeouts, broken connections; exponential
backoff with jitter, or as long as Retry-After says). What it cannot know is added here: an empty
account also answers 429 and is not worth a retry, and one verdict has a deadline over all its
attempts.
"""

from __future__ import annotations

import asyncio
import os
import re
from types import TracebackType
from typing import Any, Self

import openai

from configs.errors import UserError
from evaluation.alpaca.config import ChatJudgeConfig
from evaluation.alpaca.store import Reply

NO_MONEY_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_NO_MONEY = re.compile(
    r"insufficient[ _](quota|balance|credits?|funds)|key limit exceeded", re.IGNORECASE
)
_SHOWN = 300
KEY_REFUSED = "the endpoint does not accept the key"


class HopelessError(Exception):
    """No request will be answered before somebody acts: no money, no right, no such model."""


class NoAnswerError(Exception):
    """This request got no answer within its attempts and its deadline."""


class RefusedError(Exception):
    """The endpoint will not answer this request, however often it is sent."""


class ForbiddenError(RefusedError):
    """It refuses with 403, which may be of the key: some say so of a text that they block."""


class ChatClient:
    """A chat endpoint; enter it to use it."""

    def __init__(self, config: ChatJudgeConfig) -> None:
        """Read the key and prepare the connections; nothing is sent.

        Raises:
            UserError: The key cannot be had.
        """
        self._config = config
        self._key = read_key(config)
        self.attempts = 0
        """Requests sent so far, retries among them."""
        self._running: set[asyncio.Timeout] = set()
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            # The library wants one, whether the endpoint asks for it or not.
            api_key=self._key or "none",
            max_retries=config.retries,
            timeout=config.timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"request": [self._count], "response": [self._spare_retries]}
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def ask(self, body: dict[str, Any]) -> Reply:
        """Send one request body and return the reply.

        Raises:
            HopelessError: It is no use to send any other.
            NoAnswerError: The endpoint cannot be reached, is overloaded or answers nonsense.
            RefusedError: The endpoint does not take this request; a ForbiddenError may be of all.
        """
        try:
            completion = await self._post(body)
        except TimeoutError:
            seconds = self._config.deadline_s
            raise NoAnswerError(f"no answer within the deadline of {seconds:g} s") from None
        except openai.APIStatusError as error:
            raise self._meaning(error) from None
        except (openai.APIError, ValueError) as error:
            # ValueError: an answer that says it is JSON and is not.
            raise NoAnswerError(self._shown(str(error) or type(error).__name__)) from None
        return self._reply(completion)

    def hurry(self) -> None:
        """Give what is under way the time of one more attempt: it may have been paid."""
        latest = asyncio.get_running_loop().time() + self._config.timeout_s
        for timeout in self._running:
            timeout.reschedule(min(latest, timeout.when() or latest))

    async def _post(self, body: dict[str, Any]) -> object:
        async with asyncio.timeout(self._config.deadline_s) as timeout:
            self._running.add(timeout)
            try:
                return await self._client.post("/chat/completions", body=body, cast_to=object)
            finally:
                self._running.discard(timeout)

    def _meaning(self, error: openai.APIStatusError) -> Exception:
        """What an error status says of this request and of the others."""
        status = error.status_code
        sentence = self._shown(f"{status}: {_message(error)}")
        if status == 402 or _out_of_money(error.body):
            return HopelessError(f"the account has no money left ({sentence})")
        if status == 401:
            return HopelessError(f"{KEY_REFUSED} ({sentence})")
        if status == 403:
            return ForbiddenError(sentence)
        if status == 404:
            return HopelessError(f"no model {self._config.model!r} there ({sentence})")
        if status in (408, 409, 429) or status >= 500:
            return NoAnswerError(sentence)
        return RefusedError(sentence)

    def _reply(self, completion: object) -> Reply:
        try:
            return parse_completion(completion)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            text = self._shown(str(completion))
            raise NoAnswerError(f"the endpoint answered with no chat completion: {text}") from None

    def _shown(self, text: str) -> str:
        """The beginning of a text from outside, without the key that it may repeat."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:_SHOWN]

    async def _count(self, _request: Any) -> None:
        self.attempts += 1

    async def _spare_retries(self, response: Any) -> None:
        """Tell the library, in its own words, that an empty account is not worth a retry."""
        if response.status_code == 429:
            await response.aread()
            try:
                body = response.json()
            except ValueError:
                return
            if _out_of_money(body.get("error", body) if isinstance(body, dict) else body):
                response.headers["x-should-retry"] = "false"


def read_key(config: ChatJudgeConfig) -> str | None:
    """The endpoint's key, None where the configuration names none.

    Raises:
        UserError: The file or the variable that is named holds none.
    """
    if config.api_key_file is not None:
        try:
            key = config.api_key_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"judge.api_key_file: cannot be read: {error}") from None
        if not key:
            raise UserError(f"judge.api_key_file: {config.api_key_file} is empty")
        return key
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"judge.api_key_env: the environment has no {config.api_key_env}; set it to the key of"
            f" {config.base_url}, or judge.api_key_env=null where the endpoint asks for none"
        )
    return key


def parse_completion(completion: Any) -> Reply:
    """A chat completion as JSON gave it, as a Reply; any other error for what is none."""
    choice = completion["choices"][0]
    listed = (choice.get("logprobs") or {}).get("content") or [{}]
    top = listed[0].get("top_logprobs") or []
    usage = completion.get("usage") or {}
    text = choice["message"].get("content")
    return Reply(
        text=text if isinstance(text, str) else "",
        finish_reason=choice.get("finish_reason"),
        top_logprobs=tuple((str(t["token"]), float(t["logprob"])) for t in top),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )


def _out_of_money(error: object) -> bool:
    """Whether an error's body says that the account is empty, and not merely too fast."""
    if not isinstance(error, dict):
        return False
    said = [str(error.get(field) or "") for field in ("code", "type")]
    return any(word in NO_MONEY_CODES for word in said) or bool(
        _NO_MONEY.search(str(error.get("message") or ""))
    )


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, dict) else body
    return str(message or error.message)
