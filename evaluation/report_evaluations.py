"""What `selfplay evaluate` left in RUN/evaluation, as the report shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.alpaca.verdicts import counted
from evaluation.charts import PALETTE, Drawing
from evaluation.report_bars import Bar, draw_outcomes, draw_rates
from evaluation.run_files import Row

OUTCOMES = {"win": "n_wins", "tie": "n_draws", "loss": "n_wins_base"}
HALF, LOST = "win_rate", "win_rate_ties_as_losses"
"""The two win rates: a tie as half (AlpacaEval), a tie as a loss (the paper's v3)."""
STANDARD_ERRORS = {HALF: "standard_error", LOST: "standard_error_ties_as_losses"}


@dataclass(frozen=True)
class Measured:
    """A number of a benchmark: fractions."""

    benchmark: str
    metric: str
    meaning: str
    checkpoint: str
    n: int
    value: float
    ci95: Sequence[float] | None


@dataclass(frozen=True)
class Judged:
    """One AlpacaEval: per cent; `blocks` are the rates overall and by subset."""

    checkpoint: str
    model: str
    reference: str
    judge: str
    blocks: dict[str, Row]
    drawings: list[Drawing]
    notes: list[str]


@dataclass
class Evaluations:
    """All evaluations of a run, by checkpoint; `notes` and `unreadable` are sentences."""

    benchmarks: list[Measured] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def read_evaluations(run_dir: Path) -> Evaluations:
    """The evaluations of a run's checkpoints. A result of another form is named, not shown."""
    found = Evaluations()
    folders = sorted((run_dir / "evaluation").glob("*/result.json"), key=_by_checkpoint)
    for path in folders:
        checkpoint = _checkpoint(path)
        try:
            _add(found, checkpoint, json.loads(path.read_text("utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            place = path.relative_to(run_dir)
            found.unreadable.append(f"{place} cannot be shown ({type(error).__name__}: {error})")
    found.benchmarks.sort(key=lambda one: (one.benchmark, one.metric))
    found.notes = list(dict.fromkeys(found.notes))
    return found


def _add(found: Evaluations, checkpoint: str, result: Row) -> None:
    if "benchmarks" in result:
        measured, notes = [*_measured(checkpoint, result)], [*_notes(result)]
        found.benchmarks += measured
        found.notes += [f"{checkpoint}: {note}" for note in notes]
    else:
        found.judged.append(_judged(checkpoint, result))


def _checkpoint(path: Path) -> str:
    """What was evaluated: the folder says the iteration, or whatever its user called it."""
    number = path.parent.name.rpartition("-")[2]
    return f"iteration {number}" if number.isdigit() else path.parent.name


def _by_checkpoint(path: Path) -> tuple[int, str]:
    number = path.parent.name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0, path.parent.name


def _measured(checkpoint: str, result: Row) -> Iterator[Measured]:
    for name, summary in result["benchmarks"].items():
        for metric, one in summary["metrics"].items():
            meaning = result["definitions"].get(metric, "")
            value, ci95 = float(one["value"]), one["ci95"]
            yield Measured(name, metric, meaning, checkpoint, summary["n"], value, ci95)


def _notes(result: Row) -> Iterator[str]:
    yield from result["notes"]
    for name, summary in result["benchmarks"].items():
        if kinds := summary.get("kinds"):
            yield f"{name}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"
        yield from (f"{name}: {note}" for note in summary["notes"])


def _judged(checkpoint: str, result: Row) -> Judged:
    blocks = {"overall": result, **result["subsets"]}
    return Judged(
        checkpoint,
        result["model"] or "the model",
        result["reference"] or "the reference",
        result["judge"] or "an unnamed judge",
        {name: _block(block) for name, block in blocks.items()},
        _drawings(checkpoint, {name: block for name, block in blocks.items() if block["n_total"]}),
        _remarks(result),
    )


def _block(block: Row) -> Row:
    """The figures of one line of the table."""
    return {
        "n": block["n_total"],
        **_shares(block),
        "rates": [_rate(block, HALF), _rate(block, LOST)],
        "length_controlled": block.get("length_controlled_winrate"),
        "against_base": block.get("against_base"),
    }


def _rate(block: Row, key: str) -> Row:
    error = block[STANDARD_ERRORS[key]]
    return {"value": block[key], "error": error, "ci95": block[f"ci95_{key}"]}


def _shares(block: Row) -> dict[str, float | None]:
    n = block["n_total"]
    return {name: 100 * block[key] / n if n else None for name, key in OUTCOMES.items()}


def _drawings(checkpoint: str, blocks: Mapping[str, Row]) -> list[Drawing]:
    shares = {name: _known(_shares(block)) for name, block in blocks.items()}
    half, lost = _bars(blocks, HALF), _bars(blocks, LOST)
    return [
        draw_outcomes("Win, tie and loss", f"% of the verdicts, {checkpoint}", shares),
        draw_rates("Win rate, ties as half", f"AlpacaEval's, {checkpoint}", half),
        draw_rates("Win rate, ties as losses", f"the paper's v3, {checkpoint}", lost),
    ]


def _bars(blocks: Mapping[str, Row], key: str) -> list[Bar]:
    return [
        Bar(name, block[key], block[f"ci95_{key}"], PALETTE[0]) for name, block in blocks.items()
    ]


def _known(shares: Mapping[str, float | None]) -> dict[str, float]:
    return {name: share or 0.0 for name, share in shares.items()}


def _remarks(result: Row) -> list[str]:
    said: list[str] = []
    if (rate := result.get("length_controlled_winrate")) is not None:
        source = result["length_controlled_source"]
        said.append(f"length-controlled win rate: {rate:.1f} ({source})")
    elif absent := result.get("length_controlled_absent"):
        said.append(f"no length-controlled win rate: {absent}")
    if result["n_dropped"]:
        said.append(f"{result['n_dropped']} rows count in no rate: {counted(result['dropped'])}")
    return [*said, *result["notes"]]
