"""Mathematics and instruction following: lm_eval asks and scores, and any `Generator` answers.

Queries go through the Solver's own prompt, without examples. Beside what lm_eval measures, answers
to mathematical problems are compared by math_verify, in a process that can be killed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.generator import Generator
from actors.records import Completion, GenerationRequest, Sampling, TokenIds
from configs.errors import UserError
from evaluation.asking import ending_notes, endings
from evaluation.benchmarks import Benchmark
from evaluation.intervals import wilson
from evaluation.rows import Row
from rewards.killable import score_apart

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask

VERIFY = "rewards.verifier:math_verify"
VERIFY_DEADLINE_S = 5.0
"""For math_verify on one answer; one that takes longer counts as wrong."""

Ask = Callable[[Sequence[str]], list[Completion]]
"""Returns the answers to queries, in their order."""


@dataclass(frozen=True, slots=True)
class Item:
    """One query with its answer, and what each metric says of it.

    A value is 0 or 1, or a list of them where a query has several instructions. `finish_reason` is
    the answer's, as in `actors.records.Completion`.
    """

    row: Row
    query: str
    answer: str
    finish_reason: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scores:
    """What a benchmark measured; `notes` say what the numbers leave out."""

    benchmark: str
    items: list[Item]
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """The numbers: {benchmark, n, n_cut, n_no_room, metrics: {name: {value, ci95}}, notes}.

        Rates are fractions. `ci95` is null where a query has several values, which are not
        independent. `n_cut` and `n_no_room` as in `evaluation.asking.endings`.
        """
        ended = endings(item.finish_reason for item in self.items)
        return {
            "benchmark": self.benchmark,
            "n": len(self.items),
            **ended,
            "metrics": {name: self._metric(name) for name in self.items[0].values},
            "notes": [*self.notes, *ending_notes(ended)],
        }

    def _metric(self, name: str) -> dict[str, Any]:
        values = [item.values[name] for item in self.items]
        if any(isinstance(value, list) for value in values):
            return {"value": float(np.concatenate(values).mean()), "ci95": None}
        right = int(sum(values))
        return {"value": right / len(values), "ci95": list(wilson(right, len(values)))}


async def evaluate(
    benchmark: Benchmark,
    generator: Generator,
    encode: Callable[[str], TokenIds],
    sampling: Sampling,
    rows: Sequence[Row],
) -> Scores:
    """Answer every query of a benchmark once, and score.

    Args:
        benchmark: One of `evaluation.benchmarks`.
        generator: Makes the answers.
        encode: Makes the Solver's prompt of a query.
        sampling: How answers are sampled; lm_eval's own settings are not used.
        rows: The benchmark's rows, in its hub data set's form.

    Raises:
        UserError: Not one row can be scored on this machine; nothing was asked.
    """
    loop = asyncio.get_running_loop()

    def ask(queries: Sequence[str]) -> list[Completion]:
        requests = [GenerationRequest(encode(query), sampling) for query in queries]
        return asyncio.run_coroutine_threadsafe(generator.generate(requests), loop).result()

    items, notes = await asyncio.to_thread(_evaluate, benchmark, rows, ask)
    if benchmark.reference is not None:
        notes += await _verify(benchmark.reference, items)
    return Scores(benchmark.name, items, notes)


def _evaluate(
    benchmark: Benchmark, rows: Sequence[Row], ask: Ask
) -> tuple[list[Item], tuple[str, ...]]:
    """Have lm_eval ask and score; blocks."""
    from lm_eval.evaluator import evaluate as lm_evaluate  # noqa: PLC0415 — seconds

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of each of these settings
    scoring = benchmark.scoring()
    scorable = [row for row in rows if scoring.can_score(row)]
    if not scorable:
        raise UserError(
            f"{benchmark.name}: none of the {len(rows)} problems can be scored"
            f" ({'; '.join(scoring.notes)}): install what is missing, or raise limit"
        )
    task = _task(benchmark, scoring.config, scorable)
    ended: dict[int, str] = {}
    results = lm_evaluate(
        _model(ask, ended), {"tasks": {benchmark.name: task}, "groups": {}}, bootstrap_iters=0
    )
    assert results is not None, "this is the only rank"
    samples: dict[str, Any] = {**results.get("samples", {})}
    return _items(samples[benchmark.name], ended), scoring.notes


def _task(benchmark: Benchmark, scoring: dict[str, Any], rows: Sequence[Row]) -> ConfigurableTask:
    from datasets import Dataset  # noqa: PLC0415 — seconds
    from lm_eval.api.task import ConfigurableTask  # noqa: PLC0415

    settings: dict[str, Any] = {
        "task": benchmark.name,
        "output_type": "generate_until",
        "num_fewshot": 0,
        "custom_dataset": lambda: {"test": Dataset.from_list([*map(dict, rows)])},
        "test_split": "test",
        "doc_to_text": benchmark.query,
        "generation_kwargs": {"until": []},
    }
    return ConfigurableTask(config=settings | scoring)


def _model(ask: Ask, ended: dict[int, str]) -> LM:
    """lm_eval's view of the generator: it generates, and knows no probabilities.

    What ended the answer to each document goes to `ended`: lm_eval takes texts only.
    """
    from lm_eval.api.model import LM  # noqa: PLC0415 — seconds

    class AskedModel(LM):
        def generate_until(self, requests: list[Instance]) -> list[str]:
            made = ask([request.args[0] for request in requests])
            for request, completion in zip(requests, made, strict=True):
                assert request.doc_id is not None, "lm_eval numbers the documents of a task"
                ended[request.doc_id] = completion.finish_reason
            return [completion.text for completion in made]

        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            raise NotImplementedError("a Generator has no log-likelihoods")

        def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
            raise NotImplementedError("a Generator has no log-likelihoods")

    return AskedModel()


def _items(samples: Sequence[dict[str, Any]], ended: Mapping[int, str]) -> list[Item]:
    """Join lm_eval's samples, one per query and filter, into one item per query."""
    items: dict[int, Item] = {}
    for sample in samples:
        number, query, answer = sample["doc_id"], sample["arguments"][0][0], sample["resps"][0][0]
        item = items.setdefault(number, Item(sample["doc"], query, answer, ended[number], {}))
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        for metric in sample["metrics"]:
            item.values[metric + suffix] = sample[metric]
    return [items[number] for number in sorted(items)]


async def _verify(reference: Callable[[Row], str], items: Sequence[Item]) -> tuple[str, ...]:
    """Add the metric `math_verify`, and say where it came to no verdict."""
    calls = [(item.query, item.answer, reference(item.row)) for item in items]
    scores = await score_apart(VERIFY, VERIFY_DEADLINE_S, "math_verify", calls)
    for item, score in zip(items, scores, strict=True):
        item.values["math_verify"] = float(score == 1.0)
    unverified = sum(score is None for score in scores)
    if not unverified:
        return ()
    return (f"math_verify hung or failed on {unverified} answers; they count as wrong",)
