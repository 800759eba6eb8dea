"""GSM8K, MATH-500 and IFEval as lm_eval takes a task: rows, queries in our words, what to measure.

lm_eval's own prompts are texts to be continued; ours are queries for a chat model. Its filters,
equalities and checks of instructions are used as they are. Its Minerva task for MATH is not: it
insists on an older grammar library than the one that math_verify brings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from evaluation.rows import HubData, Row

_NUMBER = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
_GSM8K_QUERY = """\
{question}

Think step by step. End with a line that says "The answer is", followed by the number alone."""
_MATH_QUERY = """\
{problem}

Think step by step, and put the final result into \\boxed{{}}."""
_NEED_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""IFEval's instructions that are checked with nltk's model of sentences."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """What lm_eval measures, as a part of a task's configuration.

    Rows that it cannot score are left out, and `notes` say so.
    """

    config: dict[str, Any]
    can_score: Callable[[Row], bool] = lambda row: True  # noqa: ARG005
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    `fields` are what a row must have; `query` makes the query of a row, and `reference` the result
    that math_verify compares with, where there is one.
    """

    name: str
    hub: HubData
    fields: tuple[str, ...]
    query: Callable[[Row], str]
    scoring: Callable[[], Scoring]
    reference: Callable[[Row], str] | None = None


def _gsm8k_scoring() -> Scoring:
    """Exact match of the number after "The answer is" (strict), and of the last one (flexible)."""
    filters = {
        "strict-match": {"regex_pattern": rf"The answer is (?:{_NUMBER})"},
        "flexible-extract": {"regex_pattern": _NUMBER, "group_select": -1},
    }
    take_first = {"function": "take_first"}
    exact = _metric("exact_match", ignore_case=True, regexes_to_ignore=[",", r"\$", r"\.$"])
    config = {
        "doc_to_target": _gsm8k_result,
        "filter_list": [
            {"name": name, "filter": [{"function": "regex", **how}, take_first]}
            for name, how in filters.items()
        ],
        "metric_list": [exact],
    }
    return Scoring(config)


def _gsm8k_result(row: Row) -> str:
    return row["answer"].rpartition("####")[2].strip()


def _math_scoring() -> Scoring:
    """Exact match of the last box with the result, as the authors of MATH compare strings."""
    from lm_eval.tasks.hendrycks_math.utils import (  # noqa: PLC0415 — seconds
        is_equiv,
        last_boxed_only_string,
        remove_boxed,
    )

    def score(row: Row, answers: list[str]) -> dict[str, float]:
        box = last_boxed_only_string(answers[0])
        try:
            given = None if box is None else remove_boxed(box)
        except AssertionError:  # \fbox
            given = None
        return {"exact_match": float(given is not None and is_equiv(given, row["answer"]))}

    config = {"doc_to_target": "answer", "process_results": score}
    return Scoring(config | {"metric_list": [_metric("exact_match")]})


def _ifeval_scoring() -> Scoring:
    """Share of prompts, and of instructions, that are followed; loose after removing decoration."""
    with _no_download():
        from lm_eval.tasks.ifeval import utils  # noqa: PLC0415 — seconds
    import langdetect  # noqa: PLC0415 — comes with it

    langdetect.DetectorFactory.seed = 0  # it draws; the same answer is to get the same score
    metrics = [
        _metric(f"{level}_level_{how}_acc", aggregation)
        for level, aggregation in (("prompt", "mean"), ("inst", utils.agg_inst_level_acc))
        for how in ("strict", "loose")
    ]
    config = {
        "doc_to_target": "key",
        "process_results": utils.process_results,
        "metric_list": metrics,
    }
    if _has_punkt():
        return Scoring(config)
    note = (
        f"prompts with {' or '.join(_NEED_PUNKT)} are left out: nltk's sentence model is not on"
        " this machine (python -m nltk.downloader punkt_tab)"
    )
    return Scoring(config, _needs_no_sentences, (note,))


def _needs_no_sentences(row: Row) -> bool:
    return not set(_NEED_PUNKT) & set(row["instruction_id_list"])


def _has_punkt() -> bool:
    import nltk  # noqa: PLC0415 — seconds

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


@contextmanager
def _no_download() -> Iterator[None]:
    """lm_eval downloads the sentence model on import, without a deadline, in the first rank."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        yield
    finally:
        os.environ.pop("LOCAL_RANK")
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def _metric(name: str, aggregation: Any = "mean", **options: Any) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": True, **options}


GSM8K = Benchmark(
    "gsm8k",
    HubData("openai/gsm8k", "main"),
    ("question", "answer"),
    lambda row: _GSM8K_QUERY.format(question=row["question"]),
    _gsm8k_scoring,
    _gsm8k_result,
)
MATH500 = Benchmark(
    "math500",
    HubData("HuggingFaceH4/MATH-500"),
    ("problem", "answer"),
    lambda row: _MATH_QUERY.format(problem=row["problem"]),
    _math_scoring,
    # In a box: some results are amounts of money, whose escaped $ reads as a delimiter.
    lambda row: f"\\boxed{{{row['answer']}}}",
)
IFEVAL = Benchmark(
    "ifeval",
    HubData("google/IFEval", split="train"),
    ("key", "prompt", "instruction_id_list", "kwargs"),
    lambda row: row["prompt"],
    _ifeval_scoring,
)
