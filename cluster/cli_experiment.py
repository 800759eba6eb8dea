"""The command line of `selfplay experiment`; imports wait for the experiment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  selfplay experiment configs/experiments/playground.yaml
  selfplay experiment configs/experiments/paper-v3.yaml --seeds 0 1 2

The same command goes on where it stopped. docs/replication.md says how each number is defined.
"""


def add_experiment(commands: Any) -> None:
    """Add `experiment` to the commands of the command line."""
    parser = commands.add_parser(
        "experiment",
        help="play chains of training stages for several seeds, and compare them",
        description="Play chains of training stages for several seeds, and compare them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "experiment", metavar="FILE", type=Path, help="a YAML file, see configs/experiments/"
    )
    parser.add_argument(
        "--seeds", metavar="SEED", type=int, nargs="+", help="instead of the file's"
    )
    parser.set_defaults(command=_experiment)


def _experiment(options: argparse.Namespace) -> None:
    from cluster.experiment import run_experiment  # noqa: PLC0415
    from cluster.experiment_results import write_results  # noqa: PLC0415
    from cluster.faults import RunError  # noqa: PLC0415
    from configs.experiments import load_experiment  # noqa: PLC0415

    config = load_experiment(options.experiment, options.seeds)
    failed = run_experiment(config)
    print(write_results(config, failed))
    if failed:
        raise RunError("; ".join([*failed, "the same command tries again"]))
