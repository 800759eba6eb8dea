"""The admission gate: every reason once, and what it must not reject."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from actors.gate import Classify, Gate, Safety
from actors.records import Completion, Query
from actors.roles import CHALLENGER_PROMPT, CHALLENGER_SLOTS, PromptFile
from configs.errors import UserError
from configs.schema import GateConfig

OURS = PromptFile.load(CHALLENGER_PROMPT, CHALLENGER_SLOTS)


def written(text: str, finish_reason: str = "stop") -> Query:
    ids = np.zeros(1, dtype=np.int32)
    made = Completion(ids, ids, text, finish_reason, 0, 0, 0)
    return Query("g0", text, completion=made)


def gate(
    prompt: PromptFile = OURS,
    fits: bool = True,
    classify: Classify | None = None,
    **settings: object,
) -> Gate:
    return Gate(GateConfig.model_validate(settings), prompt, lambda query: fits, classify)


def judged(gate: Gate, query: Query, seen: set[str]) -> str | None:
    return asyncio.run(gate.check(query, seen))


@contextlib.asynccontextmanager
async def obedient(
    classify: Classify | None = None, said: Safety | None = None, **settings: object
) -> AsyncIterator[Callable[[str], Awaitable[str | None]]]:
    """A gate whose task verifier obeys the queries, as a function of their text."""
    obey = "tests.actors.task_verifiers:obey"
    strict = gate(classify=classify, task_verifier=obey, **settings)
    try:
        yield lambda text: strict.check(written(text), set(), said)
    finally:
        await strict.close()


def test_a_good_query_is_admitted():
    assert judged(gate(), written("Sort the letters of b d a c."), {"another"}) is None


def test_a_query_of_a_data_set_has_no_completion_and_is_not_cut_off():
    assert judged(gate(), Query("g0", "What is three?"), set()) is None


@pytest.mark.parametrize("text", ["", "abc"])
def test_empty(text: str):
    assert judged(gate(), written(text), set()) == "empty"


def test_cut_off_by_the_token_limit():
    assert judged(gate(), written("Sort the letters", "length"), set()) == "cut_off"


@pytest.mark.parametrize(
    "text",
    [
        "Sort b a c. [END OF TEMPLATE]",
        "[START OF TEMPLATE]\nSort b a c.",
        # Twelve words of the prompt, in another case and with other punctuation.
        "a language task is made of pairs -- An Input, which somebody GIVES",
    ],
)
def test_echo_of_markers_or_prompt(text: str):
    assert judged(gate(), written(text), set()) == "echo"


def test_fewer_words_in_a_row_than_the_limit_are_no_echo():
    text = "Is it true that a language task is made of pairs?"
    assert judged(gate(), written(text), set()) is None
    assert judged(gate(echo_words=6), written(text), set()) == "echo"


def test_the_template_is_expected_in_the_query_and_no_echo():
    template = "Take the following letters and put every one of them into its place of the alphabet"
    prompt = PromptFile("Fill in:\n{{template}}\nabout {{task}}.", CHALLENGER_SLOTS)
    assert judged(gate(prompt), written(template + ": b a"), set()) is None


@pytest.mark.parametrize("text", ["<start> Sort b a", "Sort b a <end>", "Sort (b) a {"])
def test_markers_in_the_templates_own_line_are_known(text: str):
    prompt = PromptFile(
        "Write about {{task}} .\nTemplate : <start> {{template}} <end>", CHALLENGER_SLOTS
    )
    expected = "echo" if "<" in text else None
    assert judged(gate(prompt), written(text), set()) == expected


@pytest.mark.parametrize("around", ['"{{template}}".', "({{template}}), and", "**{{template}}**"])
def test_punctuation_next_to_the_template_is_no_marker(around: str):
    prompt = PromptFile(f"Fill in {around}\n{{{{task}}}}", CHALLENGER_SLOTS)
    text = 'Put (b, a), and **then** "c". In order'
    assert judged(gate(prompt), written(text), set()) is None


def test_words_next_to_the_template_are_no_markers():
    prompt = PromptFile("Write\n{{template}}\nNow\n{{task}}", CHALLENGER_SLOTS)
    assert judged(gate(prompt), written("Write down what comes Now."), set()) is None


def test_runs_of_words_do_not_reach_across_a_slot():
    prompt = PromptFile("one two three {{task}} four five six {{template}}", CHALLENGER_SLOTS)
    assert judged(gate(prompt, echo_words=4), written("one two three four five six"), set()) is None


def test_duplicate_within_the_iteration():
    assert judged(gate(), written("Sort b a."), {"Sort b a."}) == "duplicate"


def test_no_room_for_an_answer():
    assert judged(gate(fits=False), written("Sort b a."), set()) == "too_long"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("four", None),
        ("fives", "task_odd"),
        ("raise", "task_error"),
        ("true", "task_error"),
        ("crash", "task_crashed"),
        ("hang", "task_hung"),
    ],
)
def test_what_the_task_verifier_does_costs_its_query_only(text: str, reason: str | None):
    async def reasons() -> list[str | None]:
        async with obedient(deadline_s=1.0) as check:
            return [await check(one) for one in (text, "four", "fives")]

    assert asyncio.run(reasons()) == [reason, None, "task_odd"]


def test_the_loop_goes_on_while_the_task_verifier_hangs():
    async def ticks() -> int:
        async with obedient(deadline_s=1.0) as check:
            await check("four")  # or its start would be counted
            hung, n = asyncio.ensure_future(check("hang")), 0
            while not hung.done():
                await asyncio.sleep(0.01)
                n += 1
            assert hung.result() == "task_hung"
            return n

    assert asyncio.run(ticks()) > 20


def test_a_query_with_another_fault_does_not_reach_the_task_verifier():
    async def reason() -> str | None:
        async with obedient(min_characters=6) as check:
            return await check("crash")

    assert asyncio.run(reason()) == "empty"


def test_one_process_judges_all_queries_and_is_gone_afterwards():
    async def processes() -> set[str | None]:
        async with obedient() as check:
            return {await check("process") for _ in range(3)}

    (found,) = asyncio.run(processes())
    pid = str(found).removeprefix("task_")
    assert int(pid) != os.getpid()
    assert not Path(f"/proc/{pid}").exists()


def test_an_end_does_not_wait_longer_than_the_query_in_hand(caplog: pytest.LogCaptureFixture):
    async def cancelled() -> None:
        async with obedient(deadline_s=0.5) as check:
            await check("four")
            waiting = [asyncio.ensure_future(check("hang")) for _ in range(20)]
            await asyncio.sleep(0.1)
            for one in waiting:
                one.cancel()

    started = time.monotonic()
    asyncio.run(cancelled())
    assert time.monotonic() - started < 8
    assert [record.message.count("hung") for record in caplog.records] == [1]


@pytest.mark.parametrize("name", ["tests.actors.task_verifiers:absent", "absent_module:verify"])
def test_a_task_verifier_that_is_not_there_is_named(name: str):
    with pytest.raises(UserError, match=f"gate.task_verifier '{name}' cannot be used"):
        judged(gate(task_verifier=name), written("Sort b a."), set())


class Classifier:
    """Rejects a text for the label that follows a `#`, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def __call__(self, texts: list[str]) -> Sequence[str | None]:
        self.asked.append(texts)
        return [text.partition("#")[2] or None for text in texts]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Sort b a c.", None),
        ("Sort b a c. #weapons", "unsafe_weapons"),
        ("Sort b a c. #undecided", "unsafe_undecided"),
    ],
)
def test_what_the_safety_classifier_says(text: str, reason: str | None):
    classify = Classifier()
    assert judged(gate(classify=classify), written(text), set()) == reason
    assert classify.asked == [[text]]


def test_queries_are_classified_together_and_not_again():
    classify = Classifier()
    strict = gate(classify=classify)
    queries = [written("Sort b a. #drugs"), written(""), written("Sort c b.")]

    async def reasons() -> list[str | None]:
        said = await strict.classified(queries)
        return [await strict.check(q, set(), s) for q, s in zip(queries, said, strict=True)]

    assert asyncio.run(reasons()) == ["unsafe_drugs", "empty", None]
    assert classify.asked == [[query.text for query in queries]]


def test_a_query_with_another_fault_does_not_reach_the_safety_classifier():
    async def reasons() -> list[str | None]:
        async with obedient(classify) as check:
            return [await check("four #drugs"), await check("odd"), await check("four #drug")]

    classify = Classifier()
    assert asyncio.run(reasons()) == ["task_odd", "empty", "unsafe_drug"]
    assert classify.asked == [["four #drug"]]


def test_the_task_verifiers_reason_comes_before_what_was_classified_ahead():
    async def reasons() -> list[str | None]:
        async with obedient(said=Safety("drugs")) as check:
            return [await check("fives"), await check("four")]

    assert asyncio.run(reasons()) == ["task_odd", "unsafe_drugs"]


def test_without_a_safety_classifier_every_query_is_safe():
    async def reasons() -> list[Safety]:
        return await gate().classified([written("one"), written("two")])

    assert asyncio.run(reasons()) == [Safety(None)] * 2
