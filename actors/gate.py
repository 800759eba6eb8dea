"""Which of the Challenger's queries enter training: strict, cheap checks apart from any reward.

A gate in front of training keeps self-play from drifting to garbled queries under every reward
that was tested with it (arXiv 2605.22217).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from actors.killable import AwaitableFunction
from actors.records import Query
from actors.roles import PromptFile
from configs.schema import GateConfig

log = logging.getLogger(__name__)

Classify = Callable[[list[str]], Awaitable[Sequence[str | None]]]
"""Gives each text the label that a safety classifier rejects it for, None where it is safe."""

REASONS = r"empty|cut_off|echo|duplicate|too_long|task_\w+|unsafe_\w+"
"""The names that `Gate.check` gives for a rejection, as a pattern."""


@dataclass(frozen=True, slots=True)
class Safety:
    """What the safety classifier said of one query: the label it is rejected for, None if none."""

    label: str | None


class Gate:
    """Decides on one query at a time. It remembers nothing.

    A task verifier reads what a model wrote, and some text may hang or crash it: it runs in a
    process of its own, which the first query starts and `close` ends.
    """

    def __init__(
        self,
        config: GateConfig,
        prompt: PromptFile,
        answer_fits: Callable[[Query], bool],
        classify: Classify | None = None,
    ) -> None:
        """Take the challenger prompt and a function that finds room for an answer.

        Args:
            config: The section `gate`.
            prompt: The challenger prompt, whose own wording no query may repeat.
            answer_fits: Whether the Solver's prompt and the longest answer to a query fit the
                engine's context together.
            classify: The safety classifier; None: every query passes as safe.
        """
        self._config = config
        self._answer_fits = answer_fits
        self._classify = classify
        named = config.task_verifier
        self._task_verifier = (
            AwaitableFunction(named, config.deadline_s, "gate.task_verifier") if named else None
        )
        self._wording = {
            run for text in prompt.wording for run in word_runs(text, config.echo_words)
        }
        self._markers = template_markers(prompt)

    async def classified(self, queries: Sequence[Query]) -> list[Safety]:
        """Return what the safety classifier says of queries that were sampled together.

        It reads them in batches, which `check` cannot: that judges in order, one by one. Each is
        classified whatever `check` will say of it, so that a query's verdict depends on no other.
        """
        if self._classify is None:
            return [Safety(None) for _ in queries]
        return [Safety(label) for label in await self._classify([q.text for q in queries])]

    async def check(self, query: Query, seen: Set[str], safety: Safety | None = None) -> str | None:
        """Return why a query is rejected, None where it is admitted.

        Args:
            query: What the Challenger wrote.
            seen: The texts of the iteration's queries that were admitted before it.
            safety: What `classified` said of the query; None: the classifier is asked now.

        Returns:
            `empty`, `cut_off`, `echo`, `duplicate`, `too_long`, or `task_` and what the task
            verifier says; `task_hung` where it takes more than `gate.deadline_s`, `task_crashed`
            where its process ends, `task_error` where it raises or returns no text. Last, `unsafe_`
            and the label that the safety classifier rejects it for; `unsafe_undecided` where its
            probabilities are NaN.

        Raises:
            UserError: `gate.task_verifier` names no function that can be imported.
        """
        fault = self._own_fault(query, seen) or await self._task_fault(query.text)
        if fault is not None:
            return fault
        if safety is None:
            (safety,) = await self.classified([query])
        return None if safety.label is None else f"unsafe_{safety.label}"

    async def close(self) -> None:
        """End the task verifier's process."""
        if self._task_verifier is not None:
            await self._task_verifier.close()

    def _own_fault(self, query: Query, seen: Set[str]) -> str | None:
        if len(query.text) < self._config.min_characters:
            return "empty"
        if query.completion is not None and query.completion.finish_reason == "length":
            return "cut_off"
        if self._is_echo(query.text):
            return "echo"
        if query.text in seen:
            return "duplicate"
        return None if self._answer_fits(query) else "too_long"

    def _is_echo(self, text: str) -> bool:
        if any(marker in text for marker in self._markers):
            return True
        return any(run in self._wording for run in word_runs(text, self._config.echo_words))

    async def _task_fault(self, text: str) -> str | None:
        if self._task_verifier is None:
            return None
        # Whatever the text does to the function: the query is at fault, not the run.
        outcome = await self._task_verifier.call(text)
        if outcome.kind in ("hung", "crashed"):
            return f"task_{outcome.kind}"
        if outcome.kind != "returned":
            return "task_error"
        fault = outcome.result
        if not isinstance(fault, str | None):
            named = self._config.task_verifier
            log.warning("gate.task_verifier: %s returned %.80r, no text", named, fault)
            return "task_error"
        return None if fault is None else f"task_{fault}"


def word_runs(text: str, length: int) -> Iterator[tuple[str, ...]]:
    """Yield every run of `length` consecutive words, without their case and punctuation."""
    words = re.findall(r"\w+", text.casefold())
    for start in range(len(words) - length + 1):
        yield tuple(words[start : start + length])


def template_markers(prompt: PromptFile) -> list[str]:
    """Return what stands right before and after the template slot and looks like a marker: the
    words beside it in its line, or the whole lines above and below.

    A marker begins and ends with punctuation, as `<start>` or, on a line of its own, `---` do:
    plain words could well stand in a query, and so could the end of a quotation beside the slot.
    """
    lines: list[str] = []
    words: list[str] = []
    pieces = prompt.text.split("{{template}}")
    for before, after in pairwise(pieces):
        *above, beside = before.split("\n")
        words += beside.split()[-1:]
        lines += [] if beside.split() else [line.strip() for line in above[-1:]]
        beside, *below = after.split("\n")
        words += beside.split()[:1]
        lines += [] if beside.split() else [line.strip() for line in below[:1]]
    return [
        *(text for text in lines if re.fullmatch(r"[^\w\s].*[^\w\s]", text)),
        *(text for text in words if re.fullmatch(r"[^\w\s].*\w.*[^\w\s]", text)),
    ]
