"""The command line of `selfplay evaluate`; imports wait for the evaluation."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  selfplay evaluate math runs/x                      GSM8K and MATH-500
  selfplay evaluate coding runs/x limit=20           HumanEval and MBPP, in a sandbox
  selfplay evaluate ifeval my-model data.ifeval=ifeval.jsonl
  selfplay evaluate alpaca-eval runs/x --judge gpt-4o-2024-08-06
  selfplay evaluate alpaca-eval my-model --against outputs.json \\
      --judge my-judge --judge-url http://127.0.0.1:8000/v1 alpaca.judge.api_key_env=null
  selfplay evaluate alpaca-eval --annotations annotations.json --json

docs/evaluation.md says how each number is defined.
"""
BENCHMARKS = {
    "math": "GSM8K and MATH-500: share of problems solved",
    "coding": "HumanEval and MBPP: share of tasks whose tests pass, in a sandbox",
    "ifeval": "IFEval: share of instructions followed",
}
ALPACA = "win rate in AlpacaEval: a judge compares with another model's answers"
MODEL = "a run directory (its newest checkpoint), a model's folder or a hub id"
A_FILE = {"math": "gsm8k", "coding": "mbpp", "ifeval": "ifeval"}
SETTINGS = """\
A setting is a dotted key and a YAML value: {example}.
The keys are explained in {where}. docs/evaluation.md says how each number is defined.
"""


class _Mixed(argparse.ArgumentParser):
    """Takes settings before and after options."""

    _mixing = False

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse options wherever they stand among the rest."""
        if self._mixing:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def add_evaluate(commands: Any) -> None:
    """Add `evaluate` to the commands of the command line."""
    what = "measure how good a run or a model is: alpaca-eval, math, coding, ifeval"
    parser = commands.add_parser(
        "evaluate",
        help=what,
        description="Measure how good a run or a model is.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluations = parser.add_subparsers(
        title="evaluations", metavar="EVALUATION", required=True, parser_class=_Mixed
    )
    _add_alpaca(evaluations)
    for name, says in BENCHMARKS.items():
        example = f"sampling.max_tokens=2048, limit=20, data.{A_FILE[name]}=FILE"
        sub = _add(evaluations, name, _benchmarks, says, example, "evaluation/config.py")
        sub.add_argument("model", metavar="RUN|MODEL", help=MODEL)
        sub.add_argument("overrides", metavar="a.b=c", nargs="*", help="settings changed")
        sub.set_defaults(evaluation=name)


def _add_alpaca(evaluations: Any) -> None:
    example = (
        "alpaca.instructions=FILE, alpaca.judge.max_cost=5;\n"
        "with --annotations they have no alpaca. in front: instructions=FILE"
    )
    where = "evaluation/config.py and evaluation/alpaca/config.py"
    sub = _add(evaluations, "alpaca-eval", _alpaca, ALPACA, example, where)
    sub.add_argument(
        "words", metavar="RUN|MODEL a.b=c", nargs="*", help=f"{MODEL}; and settings changed"
    )
    sub.add_argument(
        "--against",
        metavar="MODEL|RUN|FILE",
        help="what it is compared with, a file in AlpacaEval's form among them; otherwise the model"
        " that the run began with",
    )
    sub.add_argument("--judge", metavar="NAME", help="the judge's name at its chat endpoint")
    sub.add_argument(
        "--judge-url",
        metavar="URL",
        help="the OpenAI-compatible endpoint, up to and with /v1; otherwise OpenAI's",
    )
    sub.add_argument("--reward-judge", metavar="MODEL", help="a reward model judges instead")
    sub.add_argument(
        "--annotations",
        metavar="FILE",
        type=Path,
        help="verdicts that exist, in AlpacaEval's form: only add them up",
    )


def _add(
    evaluations: Any,
    name: str,
    command: Callable[..., None],
    what: str,
    example: str,
    where: str,
) -> Any:
    sub = evaluations.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=SETTINGS.format(example=example, where=where),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("--out", metavar="DIR", type=Path, help="the folder of the results")
    sub.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    sub.set_defaults(command=command)
    return sub


def _benchmarks(options: argparse.Namespace) -> None:
    with _stdout_for_the_result():
        from cluster.evaluating import evaluate_benchmarks  # noqa: PLC0415
        from evaluation.benchmark_table import table  # noqa: PLC0415

        result = evaluate_benchmarks(
            options.evaluation, options.model, options.overrides, options.out, _say
        )
    print(json.dumps(result) if options.json else table(result))


def _alpaca(options: argparse.Namespace) -> None:
    from evaluation.alpaca.table import table  # noqa: PLC0415

    with _stdout_for_the_result():
        result = _aggregated(options) if options.annotations else _judged(options)
    print(json.dumps(result) if options.json else table(result))


def _aggregated(options: argparse.Namespace) -> Any:
    from configs.errors import UserError  # noqa: PLC0415
    from configs.load import configured  # noqa: PLC0415
    from evaluation.alpaca.config import AggregateConfig  # noqa: PLC0415
    from evaluation.alpaca.evaluate import aggregate  # noqa: PLC0415

    needless = ("against", "judge", "judge_url", "reward_judge", "out")
    for name in needless:
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} does not go with --annotations, which adds up verdicts"
                " that exist"
            )
    for word in options.words:
        if "=" not in word:
            raise UserError(
                f"{word!r} does not go with --annotations: name a model, or a file of verdicts"
            )
    values = {"annotations": str(options.annotations)}
    return aggregate(configured(AggregateConfig, values, options.words, "the command line"))


def _judged(options: argparse.Namespace) -> Any:
    from cluster.evaluating import evaluate_alpaca  # noqa: PLC0415
    from configs.errors import UserError  # noqa: PLC0415

    if not options.words or "=" in options.words[0]:
        raise UserError("name a RUN or a MODEL to evaluate, or --annotations FILE")
    return evaluate_alpaca(
        options.words[0],
        options.against,
        options.words[1:],
        judge=options.judge,
        judge_url=options.judge_url,
        reward_judge=options.reward_judge,
        out=options.out,
        say=_say,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stdout_for_the_result() -> contextlib.AbstractContextManager[Any]:
    """Whatever libraries print goes to standard error."""
    return contextlib.redirect_stdout(sys.stderr)
