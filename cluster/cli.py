"""The command line: `selfplay`, or `python -m cluster` where the project is not installed.

Exit codes: 0 done, 1 a fault of ours or of the machine (with its traceback) or a run that cannot
go on, 2 a user's mistake or a disk that cannot be written (one sentence, no traceback), 130
interrupted.
Imports wait for their command: --help is immediate.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.cli_evaluate import add_evaluate
from cluster.cli_experiment import add_experiment
from cluster.cli_live import add_live
from cluster.cli_submit import add_submit
from cluster.faults import RunError
from cluster.token import use_token
from configs.errors import UserError, disk_fault
from learner.errors import LearnerError

DESCRIPTION = "Language Self-Play: a language model trains by playing against itself."
EXAMPLES = """\
examples:
  selfplay plan configs/llama-3.2-3b-lsp.yaml            does it fit, and where
  selfplay train configs/quickstart.yaml                 a real run on a laptop's CPU
  selfplay train configs/llama-3.2-3b-lsp.yaml rollout.replicas=6 seed=1
  selfplay status runs/llama-3.2-3b-lsp                  what it is doing, and its fleets
  selfplay scale runs/llama-3.2-3b-lsp rollout=10        more rollout workers, while it trains
  selfplay resume runs/llama-3.2-3b-lsp                  continue after a stop or a crash
  selfplay evaluate math runs/llama-3.2-3b-lsp           how good is it: also coding, ifeval, …
  selfplay experiment configs/experiments/paper-v3.yaml  baselines and chains, compared
  selfplay report runs/llama-3.2-3b-lsp                  one HTML page
  selfplay export runs/llama-3.2-3b-lsp my-model         a Hugging Face checkpoint

on a Ray cluster:
  selfplay submit configs/llama-3.2-3b-lsp.yaml run_dir=/shared/runs/lsp \\
      --address http://HEAD:8265                         or by hand, as README says

`selfplay COMMAND --help` says more. `python -m cluster` is the same command.
"""
OVERRIDES = """\
A setting is a dotted key and a YAML value: rollout.replicas=6, rewards.parts.0.weight=2,
'challenger.tasks=[{task: Mathematics}]'. The keys are explained in configs/*.py.
"""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with overrides that stand behind an option, where argparse stops."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _options(arguments)
    # The functions that a configuration names are found from here, as with python -m cluster.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        # Whichever command it is: Ray looks for its token once, at its import.
        use_token()
        options.command(options)
    except UserError as error:
        for sentence in str(error).splitlines():
            print(f"selfplay: {sentence}", file=sys.stderr)
        return 2
    except OSError as error:
        sentence = disk_fault(error)
        if sentence is None:
            raise
        print(f"selfplay: {sentence}", file=sys.stderr)
        return 2
    except (RunError, LearnerError) as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(f"selfplay: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("selfplay: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="selfplay",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_plan(commands)
    _add(commands, "resume", _resume, "continue a run that stopped or crashed")
    add_live(commands)
    add_evaluate(commands)
    add_experiment(commands)
    add_submit(commands)
    _add_report(commands)
    export = _add(
        commands, "export", _export, "copy out the newest Hugging Face checkpoint, or the best"
    )
    export.add_argument("target", metavar="DIR", type=Path, help="a folder that does not exist yet")
    export.add_argument("--best", action="store_true", help="the one marked by checkpoint.best")
    return parser


def _add(commands: Any, name: str, command: Callable[..., None], what: str) -> Any:
    """A command whose first argument is a run directory."""
    sub = commands.add_parser(name, help=what, description=_sentence(what))
    sub.add_argument("run", metavar="RUN", type=Path, help="a run directory, for example runs/x")
    sub.set_defaults(command=command)
    return sub


def _add_configured(commands: Any, name: str, command: Callable[..., None], what: str) -> Any:
    """A command that takes a configuration and overrides."""
    sub = commands.add_parser(
        name,
        help=what,
        description=_sentence(what),
        epilog=OVERRIDES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file, see configs/")
    sub.add_argument("overrides", metavar="a.b=c", nargs="*", help="settings changed for this run")
    sub.set_defaults(command=command)
    return sub


def _add_train(commands: Any) -> None:
    _add_configured(
        commands,
        "train",
        _train,
        "play and learn; in a directory that holds the same run, continue it",
    )


def _add_plan(commands: Any) -> None:
    plan = _add_configured(
        commands,
        "plan",
        _plan,
        "show which actor fits where and what memory it takes; takes no GPU",
    )
    plan.add_argument(
        "--cluster",
        metavar="FILE",
        type=Path,
        help="YAML that describes the nodes (nodes: [{name: a, count: 2, gpus: 8, gpu_gib: 80,"
        " cpus: 96, memory_gib: 1000}]); otherwise the Ray cluster of RAY_ADDRESS, or this machine",
    )


def _add_report(commands: Any) -> None:
    what = "write report.html: curves, sample games, evaluations, settings"
    report = commands.add_parser("report", help=what, description=_sentence(what))
    where = "a run directory, or the directory of an experiment"
    report.add_argument("folder", metavar="RUN|EXPERIMENT", type=Path, help=where)
    report.set_defaults(command=_report)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _train(options: argparse.Namespace) -> None:
    from cluster import run  # noqa: PLC0415
    from configs.advice import warnings  # noqa: PLC0415
    from configs.load import load, require_shared_run_dir  # noqa: PLC0415

    config = load(options.config, options.overrides)
    require_shared_run_dir(config.run_dir)
    _warn(warnings(config))
    run.train(config)


def _plan(options: argparse.Namespace) -> None:
    from cluster.plan import make_plan, nodes_from, render  # noqa: PLC0415
    from configs.advice import warnings  # noqa: PLC0415
    from configs.load import load  # noqa: PLC0415

    config = load(options.config, options.overrides)
    where, nodes = nodes_from(options.cluster)
    print(f"Plan of {options.config} for {where}\n\n{render(make_plan(config, nodes))}")
    _warn(warnings(config))


def _resume(options: argparse.Namespace) -> None:
    from cluster import run  # noqa: PLC0415
    from configs.load import require_shared_run_dir  # noqa: PLC0415

    require_shared_run_dir(options.run)
    run.resume(options.run)


def _export(options: argparse.Namespace) -> None:
    from cluster import run  # noqa: PLC0415

    run.export(options.run, options.target, best=options.best)


def _report(options: argparse.Namespace) -> None:
    from configs.experiments import SAVED  # noqa: PLC0415
    from configs.load import RESOLVED  # noqa: PLC0415

    folder: Path = options.folder
    if (folder / RESOLVED).is_file():
        from evaluation.report import write_report  # noqa: PLC0415

        print(write_report(folder))
    elif (folder / SAVED).is_file():
        from cluster.experiment_results import report  # noqa: PLC0415

        print(report(folder))
    else:
        raise UserError(
            f"{folder} is no run directory and no experiment's: it holds neither {RESOLVED} nor"
            f" {SAVED}"
        )


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"selfplay: warning: {sentence}", file=sys.stderr)
