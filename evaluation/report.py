"""`selfplay report`: a run as one HTML page that needs nothing from the network.

Model-written text is escaped by the template (autoescape); only our own SVG is marked safe.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from configs.errors import UserError, naming
from configs.load import RESOLVED, load_resolved
from configs.schema import RunConfig
from evaluation.charts import Chart, svg
from evaluation.run_files import Row, read_games, read_history, read_summary

MOMENTS = 8
"""Iterations, spread over the run, whose games are shown."""
QUERIES, ANSWERS = 2, 3
"""Games of each such iteration, and answers of each game: best, middle, worst."""
REJECTED_SHOWN = 3
LONG = 1200
"""Characters after which a model's text is cut."""
COLUMNS = [
    "iteration", "group_id", "role", "text", "finish_reason", "reward", "reward_parts", "quality",
    "verdict_text", "advantage", "admitted", "reject_reason",
]  # fmt: skip


@dataclass(frozen=True)
class Game:
    """A query and some of its answers, as rows of the ledger."""

    query: Row
    answers: list[Row]


@dataclass(frozen=True)
class Moment:
    """Games of one iteration, and queries the gate rejected in it."""

    iteration: int
    games: list[Game]
    rejected: list[Row]


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html and return its path. Raises UserError where there is no run."""
    config = load_resolved(run_dir)
    history = read_history(run_dir)
    if not history:
        raise UserError(f"{run_dir} has no iteration to report on yet: its metrics.jsonl is empty")
    path = run_dir / "report.html"
    page = render(run_dir, config, history, read_summary(run_dir))
    with naming(path):
        path.write_text(page, "utf-8")
    return path


def render(run_dir: Path, config: RunConfig, history: list[Row], summary: Row | None) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "percent": percent, "shorten": shorten}
    iterations = [row["iteration"] + 1 for row in history]
    return environment.get_template("report.html").render(
        name=run_dir.name,
        config=config,
        model=config.model.path or config.model.make,
        done=iterations[-1],
        summary=summary,
        heldout=(summary or {}).get("heldout"),
        headline=headline(history),
        sections=[
            (title, [(c, Markup(svg(c, iterations))) for c in charts if c.has_data])
            for title, charts in chart_sections(history)
        ],
        moments=moments(run_dir, iterations[-1]),
        rejected=rejection_counts(history),
        settings=(run_dir / RESOLVED).read_text("utf-8"),
    )


def chart_sections(history: Sequence[Row]) -> list[tuple[str, list[Chart]]]:
    """The curves by what they are about."""
    of, learner = _reader(history), _reader(history, "learner")
    values = {"V": of("v")}
    parts = {name: _reader(history, "parts")(name) for name in history[-1]["parts"]}
    values |= {name: means for name, means in parts.items() if means != values["V"]}
    rejected = [sum(row["rejected"].values()) for row in history]
    admitted = [row["admitted"] / (row["admitted"] + r) if row["admitted"] + r else math.nan
                for row, r in zip(history, rejected, strict=True)]  # fmt: skip
    seconds = {name: _reader(history, "seconds")(name) for name in ("generate", "train", "publish")}
    return [
        (
            "Rewards",
            [
                Chart("Solver's reward", "mean over the answers", {"": of("reward_solver")}),
                Chart("Challenger's reward", "mean over its queries",
                      {"": of("reward_challenger")}),
                Chart("V and its parts", "mean external reward R", values),
                Chart("Quality V_Q", "the reference model's verdict, 0 to 7",
                      {"": of("v_quality")}),
            ],
        ),
        (
            "Learning",
            [
                Chart("KL to the reference", "nats per token, by role",
                      {"Solver": learner("kl_solver"), "Challenger": learner("kl_challenger")}),
                Chart("Entropy", "nats per trained token", {"": learner("entropy")}),
                Chart("Gradient norm", "before clipping", {"": learner("grad_norm")}),
            ],
        ),
        (
            "The game",
            [
                Chart("Admitted queries", "share of the queries sampled", {"": admitted}, 0, 1.03),
                Chart("Different queries", "share of texts in an iteration",
                      {"": of("distinct_queries")}, 0, 1.03),
                Chart("Lengths", "mean tokens",
                      {"answers": of("answer_tokens"), "queries": of("query_tokens")}, 0),
                Chart("Answers cut off", "share that reached the token limit",
                      {"": of("answers_cut")}, 0),
            ],
        ),
        (
            "Speed",
            [
                Chart("Tokens per second", "generated, over the whole iteration",
                      {"": of("tokens_per_second")}, 0),
                Chart("Seconds by phase", "of one iteration", seconds, 0),
                Chart("Staleness", "versions, oldest token to step",
                      {"mean": of("staleness_mean"), "largest": of("staleness_max")}, 0),
            ],
        ),
    ]  # fmt: skip


def _reader(history: Sequence[Row], section: str | None = None) -> Callable[[str], list[float]]:
    rows = [row[section] for row in history] if section else history
    return lambda name: [math.nan if row.get(name) is None else row[name] for row in rows]


def headline(history: Sequence[Row]) -> list[tuple[str, float, float]]:
    """(name, mean over the first tenth, over the last tenth) of what matters most."""
    tenth = max(1, len(history) // 10)
    wanted = {
        "Solver's reward": "reward_solver",
        "Challenger's reward": "reward_challenger",
        "V": "v",
        "V_Q": "v_quality",
    }
    of = _reader(history)
    rows = [(name, _mean(of(key)[:tenth]), _mean(of(key)[-tenth:])) for name, key in wanted.items()]
    return [row for row in rows if not math.isnan(row[1])]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def moments(run_dir: Path, iterations: int) -> list[Moment]:
    """Games of some iterations spread over the run, the first and the last among them."""
    chosen = sorted({int(i) for i in np.linspace(0, iterations - 1, MOMENTS).round()})
    rows = read_games(run_dir, chosen, COLUMNS)
    by_iteration = groupby(rows, key=lambda row: row["iteration"])
    return [_moment(iteration, list(found)) for iteration, found in by_iteration]


def _moment(iteration: int, rows: list[Row]) -> Moment:
    answers: dict[str, list[Row]] = {}
    for row in rows:
        if row["role"] == "solver":
            answers.setdefault(row["group_id"], []).append(row)
    queries = [row for row in rows if row["role"] == "challenger"]
    played = [row for row in queries if row["group_id"] in answers]
    games = [Game(row, _spread(answers[row["group_id"]])) for row in _ends(played)]
    rejected = [row for row in queries if not row["admitted"]][:REJECTED_SHOWN]
    return Moment(iteration + 1, games, rejected)


def _ends(queries: list[Row]) -> list[Row]:
    """The query whose reward was highest and the one whose was lowest; the first ones of data."""
    if any(row["reward"] is None for row in queries):
        return queries[:QUERIES]
    ordered = sorted(queries, key=lambda row: -row["reward"])
    return [*ordered[: QUERIES - 1], *ordered[QUERIES - 1 :][-1:]]


def _spread(answers: list[Row]) -> list[Row]:
    """The best, the middle and the worst answer by reward."""
    ordered = sorted(answers, key=lambda row: -(row["reward"] or 0.0))
    places = sorted({int(i) for i in np.linspace(0, len(ordered) - 1, ANSWERS).round()})
    return [ordered[place] for place in places]


def rejection_counts(history: Sequence[Row]) -> list[tuple[str, int]]:
    """Rejected queries of the whole run by reason, most frequent first."""
    total: Counter[str] = Counter()
    for row in history:
        total.update(row["rejected"])
    return total.most_common()


def number(value: float | None) -> str:
    """A figure with the digits that matter; – where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A fraction as per cent; – where there is none."""
    return "–" if value is None else f"{100 * value:.1f}%"


def shorten(text: str) -> str:
    """A model's text, cut where it is very long."""
    return text if len(text) <= LONG else f"{text[:LONG]} … ({len(text) - LONG} more characters)"
