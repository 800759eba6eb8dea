"""Sends pairs to a judge, many at once, and keeps what comes back; nothing is paid twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.alpaca.client import (
    KEY_REFUSED,
    ChatClient,
    ForbiddenError,
    HopelessError,
    NoAnswerError,
    RefusedError,
)
from evaluation.alpaca.config import ChatJudgeConfig
from evaluation.alpaca.cost import estimate, price_of, spent
from evaluation.alpaca.files import Row
from evaluation.alpaca.outputs import Pair
from evaluation.alpaca.pairwise import PairwisePrompt, is_switched, preference, request_body
from evaluation.alpaca.store import Reply, ReplyStore, request_key
from evaluation.alpaca.verdicts import DRAW

UNANSWERED_IN_A_ROW = 3
"""So many requests without an answer, one after the other, mean that the endpoint is gone."""
REFUSED_AT_FIRST = 5
"""So many refusals before the first answer, or as many as are sent at once, mean that the requests
are wrong: a refusal comes sooner than a verdict."""

Say = Callable[[str], None]


@dataclass(eq=False)
class Progress:
    """What became of the requests that were sent.

    `refused_at_first` refusals before the first answer are too many. `doubtful` are those of which
    nothing shows that they are of their pair alone; they are among the `failures` as well.
    `stopped` says why no more are sent, None while they are.
    """

    total: int
    answered_before: int
    refused_at_first: int
    replies: dict[str, Reply] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, RefusedError] = field(default_factory=dict)
    stopped: str | None = None
    unanswered_in_a_row: int = 0

    def answered(self, key: str, reply: Reply) -> None:
        """Count a reply."""
        self.replies[key] = reply
        self.unanswered_in_a_row = 0

    def failed(self, key: str, error: NoAnswerError | RefusedError | HopelessError) -> None:
        """Count a failure, and stop where the next request would fail as well."""
        self.failures[key] = str(error)
        match error:
            case HopelessError():
                self.stopped = self.stopped or str(error)
            case NoAnswerError():
                self.unanswered_in_a_row += 1
                if self.unanswered_in_a_row >= UNANSWERED_IN_A_ROW:
                    self.stopped = self.stopped or f"the endpoint does not answer ({error})"
            case RefusedError():
                self.doubtful[key] = error
                if not self.replies and len(self.doubtful) >= self.refused_at_first:
                    of_key = isinstance(error, ForbiddenError)
                    what = KEY_REFUSED if of_key else "the endpoint refuses the requests"
                    self.stopped = self.stopped or f"{what} ({error})"

    def certain_refusals(self, at_end: bool = False) -> dict[str, Reply]:
        """Take out the refusals that are of their pair alone, as replies to keep.

        The endpoint has answered others: since this start, or before it. The latter shows at the
        end only, and not of a 403, which may be of another key than the answers had.
        """
        certain: dict[str, RefusedError] = {}
        if self.replies:
            certain = dict(self.doubtful)
        elif at_end and self.answered_before and not self.stopped:
            pairs = self.doubtful.items()
            certain = {k: e for k, e in pairs if not isinstance(e, ForbiddenError)}
        for key in certain:
            del self.doubtful[key], self.failures[key]
        return {key: Reply("", refusal=str(error)) for key, error in certain.items()}


@dataclass(frozen=True)
class Judged:
    """Rows of `annotations.json` for the pairs that have a verdict, and an account of the rest.

    `notes` are sentences for the user; `unfinished` is the one on why some pairs have no verdict
    yet, None where all have.
    """

    rows: list[Row]
    account: dict[str, Any]
    notes: list[str]
    unfinished: str | None


async def judge_pairs(
    pairs: Sequence[Pair],
    names: tuple[str, str],
    config: ChatJudgeConfig,
    cache: Path,
    say: Say,
) -> Judged:
    """Have every pair judged that is not identical and has not been judged before.

    Args:
        pairs: What to compare.
        names: The generators of outputs 1 (the reference) and 2 (the evaluated model).
        config: The judge.
        cache: The file of replies; every reply is on disk before the next step.
        say: Takes lines for the user: the estimate before anything is sent, then progress.

    Raises:
        UserError: Prompt, key, tokenizer or cache cannot be used, or the estimate is too high.
    """
    prompt = PairwisePrompt(config)
    sent = [pair for pair in pairs if not pair.identical]
    bodies = {pair.instruction.text: request_body(config, prompt.text(pair)) for pair in sent}
    keys = {text: request_key(body) for text, body in bodies.items()}
    with ReplyStore(cache) as store:
        todo = {keys[text]: body for text, body in bodies.items() if not store.get(keys[text])}
        texts = [str(body["messages"][0]["content"]) for body in todo.values()]
        known = [reply for key in keys.values() if (reply := store.get(key))]
        answered = sum(reply.refusal is None for reply in known)
        say(str(estimate(texts, config, answered, len(pairs) - len(sent))))
        progress = Progress(len(todo), answered, max(REFUSED_AT_FIRST, config.concurrency))
        attempts = await _ask_all(todo, config, store, progress, say) if todo else 0
        replies = {text: reply for text, key in keys.items() if (reply := store.get(key))}
    rows = [row for pair in pairs if (row := annotation(pair, names, config, replies))]
    account = _account(pairs, rows, progress, attempts, config)
    return Judged(rows, account, _notes(account), _unfinished(account, progress))


async def _ask_all(
    todo: Mapping[str, dict[str, Any]],
    config: ChatJudgeConfig,
    store: ReplyStore,
    progress: Progress,
    say: Say,
) -> int:
    """Send all of `todo` (key -> body), at most `concurrency` at once; return the attempts made.

    When there is a reason to stop, no more are sent, and what is under way is waited for: it may
    have been paid.
    """
    queue = iter(todo.items())
    async with ChatClient(config) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(config.concurrency, len(todo))):
                    group.create_task(_work(queue, client, store, progress, say))
        except ExceptionGroup as several:
            raise several.exceptions[0] from None  # a full disk, say: the same for all of them
    _keep(progress.certain_refusals(at_end=True), store)
    return client.attempts


async def _work(
    queue: Iterator[tuple[str, dict[str, Any]]],
    client: ChatClient,
    store: ReplyStore,
    progress: Progress,
    say: Say,
) -> None:
    every = max(1, progress.total // 10)
    for key, body in queue:
        if progress.stopped:
            return
        try:
            reply = await client.ask(body)
        except (HopelessError, NoAnswerError, RefusedError) as error:
            progress.failed(key, error)
            if progress.stopped:
                client.hurry()
        else:
            store.put(key, reply)
            progress.answered(key, reply)
            if len(progress.replies) % every == 0:
                say(f"{len(progress.replies)} of {progress.total} pairs judged")
        _keep(progress.certain_refusals(), store)


def _keep(replies: Mapping[str, Reply], store: ReplyStore) -> None:
    for key, reply in replies.items():
        store.put(key, reply)


def annotation(
    pair: Pair,
    names: tuple[str, str],
    config: ChatJudgeConfig,
    replies: Mapping[str, Reply],
) -> Row | None:
    """A row of `annotations.json`, None where the pair has no verdict yet.

    Its preference is null where the judge's reply is no verdict, or where it refuses the pair:
    `refusal` then holds its words.
    """
    row: Row = {
        "instruction": pair.instruction.text,
        "output_1": pair.output_1,
        "generator_1": names[0],
        "dataset": pair.instruction.subset,
        "output_2": pair.output_2,
        "generator_2": names[1],
        "annotator": config.model,
    }
    if pair.identical:
        return row | {"preference": DRAW, "price_per_example": 0.0, "raw_completion": None}
    reply = replies.get(pair.instruction.text)
    if reply is None:
        return None
    if reply.refusal is not None:
        return row | {
            "preference": None,
            "price_per_example": 0.0,
            "raw_completion": None,
            "refusal": reply.refusal,
        }
    tokens = (reply.prompt_tokens or 0, reply.completion_tokens or 0)
    return row | {
        "preference": preference(config, pair.instruction.text, reply),
        "price_per_example": price_of(config.price, *tokens),
        "raw_completion": reply.text,
        "finish_reason": reply.finish_reason,
        "shown_switched": is_switched(pair.instruction.text),
    }


def _account(
    pairs: Sequence[Pair],
    rows: Sequence[Row],
    progress: Progress,
    attempts: int,
    config: ChatJudgeConfig,
) -> dict[str, Any]:
    refusals = [row["refusal"] for row in rows if "refusal" in row]
    unparsable = [row for row in rows if row["preference"] is None and "refusal" not in row]
    return {
        "model": config.model,
        "n_pairs": len(pairs),
        "n_identical": sum(pair.identical for pair in pairs),
        "n_judged_now": len(progress.replies),
        "n_judged_before": progress.answered_before,
        "n_unparsable": len(unparsable),
        "unparsable_examples": [row["raw_completion"][-300:] for row in unparsable[:5]],
        "n_refused": len(refusals),
        "refusals": sorted(set(refusals))[:10],
        "n_without_verdict": len(pairs) - len(rows),
        "failures": sorted(set(progress.failures.values()))[:10],
        "n_attempts": attempts,
        "spent_now": spent(progress.replies.values(), config.price),
    }


def _notes(account: Mapping[str, Any]) -> list[str]:
    notes = []
    if count := account["n_unparsable"]:
        example = account["unparsable_examples"][0][-80:]
        notes.append(
            f"{count} of the judge's replies are no verdict and count in no rate, for example"
            f" {example!r}"
        )
    if count := account["n_refused"]:
        notes.append(
            f"the judge refuses {count} pairs, which count in no rate and are not asked again, for"
            f" example {account['refusals'][0]!r}"
        )
    return notes


def _unfinished(account: Mapping[str, Any], progress: Progress) -> str | None:
    """Why some pairs have no verdict yet, and what to do."""
    missing = account["n_without_verdict"]
    if not missing:
        return None
    reason = progress.stopped or f"{len(progress.failures)} requests failed ({_first(progress)})"
    return (
        f"the judge {account['model']} has given no verdict on {missing} of"
        f" {account['n_pairs']} pairs: {reason}; the verdicts so far are kept, and the same command"
        " continues with the rest"
    )


def _first(progress: Progress) -> str:
    return next(iter(progress.failures.values()), "")
