"""The results of math, coding and ifeval: how each number is defined, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.asking import ending_notes
from evaluation.coding import Attempt, summarise

Result = dict[str, Any]

DEFINITIONS = {
    "exact_match,strict-match": 'the number after "The answer is" is the result',
    "exact_match,flexible-extract": "the last number of the answer is the result",
    "exact_match": "the last \\boxed is the result, as strings, by the rules of MATH's authors",
    "math_verify": "the last expression equals the result, by the library math-verify",
    "pass@1": "the code of the one answer passes all tests, in the sandbox",
    "prompt_level_strict_acc": "prompts of which every instruction is followed",
    "prompt_level_loose_acc": "the same, after taking away markup or the first or last line",
    "inst_level_strict_acc": "instructions that are followed",
    "inst_level_loose_acc": "the same, after taking away markup or the first or last line",
}
"""What each metric is the share of."""
HEAD = ("", "", "n", "per cent", "95%")


def coding_summary(name: str, attempts: Sequence[Attempt]) -> Result:
    """The numbers of a coding benchmark in the form of `evaluation.harness.Scores.summary`."""
    numbers = summarise(attempts)
    ended = {key: numbers[key] for key in ("n_cut", "n_no_room")}
    return {
        "benchmark": name,
        "n": numbers["n"],
        **ended,
        "metrics": {"pass@1": {"value": numbers["pass@1"], "ci95": numbers["ci95"]}},
        "kinds": numbers["kinds"],
        "notes": [*ending_notes(ended)],
    }


def definitions(summaries: Sequence[Result]) -> dict[str, str]:
    """The definitions of the metrics that occur."""
    return {name: DEFINITIONS[name] for summary in summaries for name in summary["metrics"]}


def table(result: Result) -> str:
    """What `cluster.evaluating.evaluate_benchmarks` returns, as text for a terminal."""
    summaries = result["benchmarks"].values()
    lines = [f"{result['model']}, {result['evaluation']}", ""]
    lines += _aligned([HEAD, *(row for summary in summaries for row in _rows(summary))])
    lines += ["", *(f"{name}: {text}" for name, text in result["definitions"].items())]
    lines += [f"{s['benchmark']}: {_kinds(s['kinds'])}" for s in summaries if "kinds" in s]
    notes = [f"{s['benchmark']}: {note}" for s in summaries for note in s["notes"]]
    return "\n".join([*lines, *notes, *result["notes"]])


def _rows(summary: Result) -> list[tuple[str, ...]]:
    return [
        (
            summary["benchmark"] if place == 0 else "",
            name,
            str(summary["n"]),
            f"{100 * metric['value']:.1f}",
            _ends(metric["ci95"]),
        )
        for place, (name, metric) in enumerate(summary["metrics"].items())
    ]


def _ends(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def _kinds(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (
        [row[0].ljust(widths[0]), row[1].ljust(widths[1]), *map(str.rjust, row[2:], widths[2:])]
        for row in rows
    )
    return ["  ".join(row).rstrip() for row in cells]
