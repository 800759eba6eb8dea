"""`selfplay evaluate`: a run's or a model's answers, scored and written down.

Whatever can be wrong is found before an engine starts: the data, the judge, the sandbox. Each
evaluation writes `result.json` into its folder, and math, coding and ifeval `answers.jsonl` with
one row per query.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.chat import ChatEncoder, load_tokenizer
from actors.generator import Generator
from actors.records import Sampling, TokenIds
from actors.roles import solver_file, solver_prompt
from actors.vllm_start import check_model
from cluster.engines import Engines, Scoring, asked, with_engines
from cluster.evaluated import Evaluated, engine_defaults, find_base, find_evaluated, is_run
from cluster.initial import located
from configs.errors import UserError, naming
from configs.load import configured
from configs.provenance import provenance
from configs.rewards import PreferencePart
from evaluation import benchmarks, coding, coding_tasks, harness
from evaluation.alpaca.answers import Contestant
from evaluation.alpaca.evaluate import evaluate
from evaluation.alpaca.files import write_json
from evaluation.alpaca.reward_judge import RewardJudge
from evaluation.benchmark_table import Result, coding_summary, definitions
from evaluation.benchmarks import Benchmark
from evaluation.claim import RESULT, claim
from evaluation.coding_tasks import CodingTask
from evaluation.config import BenchmarkConfig, JudgedConfig
from evaluation.rows import Row, load_rows
from learner.checkpoint import write_durably
from rewards.preference import PairEncoder
from rewards.sandbox import Sandbox

Say = Callable[[str], None]
Encode = Callable[[str], TokenIds]
Rows = list[dict[str, Any]]

LM_EVAL: Mapping[str, Sequence[Benchmark]] = {
    "math": (benchmarks.GSM8K, benchmarks.MATH500),
    "ifeval": (benchmarks.IFEVAL,),
}
CODING = {"humaneval": coding_tasks.humaneval, "mbpp": coding_tasks.mbpp}
REWARD_PART = "reward_judge"


@dataclass(frozen=True)
class _Asked:
    """A model with what its answers take."""

    model: Evaluated[BenchmarkConfig]
    generator: Generator
    encode: Encode

    @property
    def sampling(self) -> Sampling:
        return _sampling(self.model.config)


def evaluate_benchmarks(
    evaluation: str, named: str, overrides: Sequence[str], out: Path | None, say: Say
) -> Result:
    """`math`, `coding` or `ifeval`: answer every problem once, and score; the result is written.

    Returns:
        {evaluation, model, identity, path, sampling, limit, benchmarks: {name: summary},
        definitions, notes, made_by}; a summary has n, n_cut, n_no_room (`evaluation.asking`) and
        metrics: {name: {value, ci95}}, rates as fractions.

    Raises:
        UserError: The model, the data, a setting or the sandbox cannot be used, or the folder holds
            the result of another evaluation.
    """
    model = find_evaluated(BenchmarkConfig, named, overrides)
    encode = _encoder(model)
    if evaluation == "coding":
        work = _coding(model.config, say)
    else:
        work = _scored_by_lm_eval(LM_EVAL[evaluation], model.config, say)
    folder = out or model.out(evaluation)
    claim(folder, _settings(evaluation, model))
    say(f"{model.name} ({model.path}): {evaluation}, results go to {folder}")
    summaries, rows = with_engines(
        lambda engines: work(_Asked(model, asked(engines, model), encode))
    )
    result = _result(evaluation, model, summaries)
    _write(folder, result, rows)
    return result


def evaluate_alpaca(
    named: str,
    against: str | None,
    overrides: Sequence[str],
    *,
    judge: str | None,
    judge_url: str | None,
    reward_judge: str | None,
    out: Path | None,
    say: Say,
) -> Result:
    """`alpaca-eval`: answers, a judge's verdicts, win rates; see `evaluation.alpaca.evaluate`.

    Raises:
        UserError: The model, the reference or the judge cannot be used, or some verdicts are
            missing: what there is has been written, and starting again continues.
    """
    values = _judge_values(judge, judge_url)
    model = find_evaluated(JudgedConfig, named, overrides, values)
    part = _judge(model.config, reward_judge, overrides)
    reference = _reference(named, against, overrides, values)
    folder = out or model.out("alpaca-eval")

    async def work(engines: Engines) -> Result:
        scorer = None if part is None else _reward_judge(engines, part, model.config)
        who = _contestant(engines, model)
        other = reference if isinstance(reference, Path) else _contestant(engines, reference)
        with _dotted_keys():
            return await evaluate(
                model.config.alpaca,
                who,
                other,
                folder,
                limit=model.config.limit,
                judge=scorer,
                say=say,
            )

    say(f"{model.name} ({model.path}): alpaca-eval, results go to {folder}")
    return with_engines(work)


# --- math, coding, ifeval ---


def _scored_by_lm_eval(chosen: Sequence[Benchmark], config: BenchmarkConfig, say: Say) -> Any:
    """Read the rows; return what asks and scores."""
    rows = {b.name: _rows(b, getattr(config.data, b.name), config.limit) for b in chosen}

    async def work(asked: _Asked) -> tuple[list[Result], Rows]:
        summaries, written = [], []
        for benchmark in chosen:
            say(f"{benchmark.name}: {len(rows[benchmark.name])} problems")
            scores = await harness.evaluate(
                benchmark, asked.generator, asked.encode, asked.sampling, rows[benchmark.name]
            )
            summaries.append(scores.summary())
            written += [
                _row(benchmark.name, place, item.query, item.answer, item.values)
                | {"finish_reason": item.finish_reason}
                for place, item in enumerate(scores.items)
            ]
        return summaries, written

    return work


def _coding(config: BenchmarkConfig, say: Say) -> Any:
    """Try the sandbox and read the tasks; return what asks and tests."""
    sandbox = Sandbox(coding.LIMITS)
    tasks = {
        name: _named(name, load, getattr(config.data, name))[: config.limit]
        for name, load in CODING.items()
    }

    async def work(asked: _Asked) -> tuple[list[Result], Rows]:
        summaries, written = [], []
        for name, chosen in tasks.items():
            say(f"{name}: {len(chosen)} problems")
            attempts = await coding.evaluate(
                asked.generator, chosen, asked.encode, asked.sampling, sandbox
            )
            summaries.append(coding_summary(name, attempts))
            written += [
                _row(name, place, a.task.query, a.answer, a.verdict.kind)
                | {"task": a.task.name, "code": a.code, "reason": a.verdict.reason}
                | {"finish_reason": a.finish_reason}
                for place, a in enumerate(attempts)
            ]
        return summaries, written

    return work


def _rows(benchmark: Benchmark, path: Path | None, limit: int | None) -> list[Row]:
    def load(path: Path | None) -> list[Row]:
        return [row for _, row in load_rows(path, benchmark.hub, benchmark.fields)]

    return _named(benchmark.name, load, path)[:limit]


def _named(
    name: str, load: Callable[[Path | None], list[Row] | list[CodingTask]], path: Path | None
) -> Any:
    """The rows of a benchmark; an error names the key that a local file would have."""
    try:
        return load(path)
    except UserError as error:
        raise UserError(f"{error} (data.{name}=FILE)" if path is None else str(error)) from error


def _row(benchmark: str, place: int, query: str, answer: str, verdict: Any) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "item": place,
        "query": query,
        "answer": answer,
        "verdict": verdict,
    }


def _settings(evaluation: str, model: Evaluated[BenchmarkConfig]) -> dict[str, Any]:
    """All that tells this evaluation from another one in the same folder."""
    config = model.config
    return {
        "evaluation": evaluation,
        "model": model.asked,
        "sampling": config.sampling.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "limit": config.limit,
    }


def _result(evaluation: str, model: Evaluated[BenchmarkConfig], summaries: list[Result]) -> Result:
    limit = model.config.limit
    return {
        "evaluation": evaluation,
        "model": model.name,
        "identity": model.identity,
        "path": model.path,
        "prompt": solver_file(model.config.prompt).text,
        "system": model.config.system,
        "sampling": model.config.sampling.model_dump(mode="json"),
        "limit": limit,
        "benchmarks": {summary["benchmark"]: summary for summary in summaries},
        "definitions": definitions(summaries),
        "notes": [f"only the first {limit} problems of each benchmark"] if limit else [],
        "made_by": provenance(),
    }


def _write(folder: Path, result: Result, rows: Rows) -> None:
    # lm_eval's values may be numpy's; ASCII alone takes whatever a model may write.
    lines = (json.dumps(row, default=float) for row in rows)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / "answers.jsonl", "".join(f"{line}\n" for line in lines))
    write_json(folder / RESULT, result)


# --- alpaca-eval ---


def _judge_values(judge: str | None, judge_url: str | None) -> dict[str, Any]:
    if judge is None and judge_url is None:
        return {}
    chosen = {"model": judge, "base_url": judge_url}
    return {"alpaca": {"judge": {key: text for key, text in chosen.items() if text is not None}}}


def _judge(
    config: JudgedConfig, reward_judge: str | None, overrides: Sequence[str]
) -> PreferencePart | None:
    """The reward model that judges, None where a chat endpoint does; checked, as far as can be."""
    chat = config.alpaca.judge
    if reward_judge is None:
        if chat is None:
            raise UserError(
                "no judge is named: --judge NAME with --judge-url URL, or --reward-judge MODEL"
            )
        return None
    if chat is not None:
        raise UserError("two judges are named: --judge and --reward-judge, choose one")
    check_model(reward_judge, None, False, "--reward-judge")
    defaults = {"reward_fleet": engine_defaults(reward_judge, config.model_copy(
        update={"revision": None, "trust_remote_code": False}))}  # fmt: skip
    settings = [text for text in overrides if text.startswith("reward_fleet")]
    fleet = configured(JudgedConfig, defaults, settings, "the defaults for --reward-judge")
    part = PreferencePart(name=REWARD_PART, model=reward_judge, fleet=fleet.reward_fleet)
    try:
        PairEncoder(part, config.chat_date)
    except UserError as error:
        said = str(error).replace(f"rewards.parts.{REWARD_PART}.fleet", "reward_fleet")
        raise UserError(
            said.replace(f"rewards.parts.{REWARD_PART}.model", "--reward-judge")
        ) from error
    return part


def _reward_judge(engines: Engines, part: PreferencePart, config: JudgedConfig) -> RewardJudge:
    asked = {
        "weights": located(part.model, None).identity,
        "chat_date": config.chat_date.isoformat(),
        "context": part.fleet.context,
        "dtype": part.fleet.dtype,
    }
    return RewardJudge(part.model, asked, Scoring(engines, part, config))


def _reference(
    named: str, against: str | None, overrides: Sequence[str], values: dict[str, Any]
) -> Evaluated[JudgedConfig] | Path:
    """What the model is compared with: a file of answers, a model, or the base of a run."""
    if against is None:
        if is_run(named):
            return find_base(JudgedConfig, Path(named), overrides, values)
        raise UserError(
            f"name what {named} is compared with: --against with a model, a run, or a JSON file of"
            " answers in AlpacaEval's form"
        )
    if against.endswith(".json") or Path(against).is_file():
        return Path(against)
    others = [text for text in overrides if text.partition("=")[0] != "revision"]
    return find_evaluated(JudgedConfig, against, others, values)


@contextlib.contextmanager
def _dotted_keys() -> Iterator[None]:
    """Name the settings of the section `alpaca` as the command line takes them."""
    try:
        yield
    except UserError as error:
        said = re.sub(r"(?<![\w./])(judge|length_control)\.(?=[a-z])", r"alpaca.\1.", str(error))
        raise UserError(said) from error


def _contestant(engines: Engines, model: Evaluated[JudgedConfig]) -> Contestant:
    return Contestant(model.name, model.asked, asked(engines, model), _encoder(model))


# --- both ---


def _encoder(model: Evaluated[Any]) -> Encode:
    config = model.config
    tokenizer = load_tokenizer(model.path, model.revision, config.trust_remote_code)
    encoder = ChatEncoder(tokenizer, config.chat_date)
    prompt = solver_file(config.prompt)
    return lambda query: solver_prompt(encoder, query, config.system, prompt)


def _sampling(config: BenchmarkConfig) -> Sampling:
    chosen = config.sampling
    return Sampling(chosen.temperature, chosen.top_p, chosen.max_tokens, tuple(chosen.stop))
