"""The command line for live runs: `status`, `scale`, `stop`; imports wait for the command."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

RUN_HELP = "a run directory, or the name of a live run on the Ray cluster (RAY_ADDRESS)"
FLEETS_HELP = "fleets and their new sizes, for example rollout=6 judge=1 reward_helpful=2"


def add_live(commands: Any) -> None:
    """Add `status`, `scale` and `stop` to the commands of the command line."""
    status = _add(commands, "status", _status, "show what a live run is doing, and its fleets")
    scale = _add(commands, "scale", _scale, "change the sizes of a live run's fleets")
    scale.add_argument("sizes", metavar="FLEET=N", nargs="+", help=FLEETS_HELP)
    for parser in (status, scale):
        parser.add_argument(
            "--json", action="store_true", help="one JSON object on standard output"
        )
    _add(commands, "stop", _stop, "ask a run to write a checkpoint and end")


def _add(commands: Any, name: str, command: Any, what: str) -> Any:
    parser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.set_defaults(command=command)
    return parser


def _status(options: argparse.Namespace) -> None:
    from cluster.control import ask  # noqa: PLC0415

    _show(ask(options.run, "status"), options)


def _scale(options: argparse.Namespace) -> None:
    from cluster.control import ask  # noqa: PLC0415

    _show(ask(options.run, "scale", {"sizes": sizes_of(options.sizes)}), options)


def _show(status: Any, options: argparse.Namespace) -> None:
    from cluster.status import status_text  # noqa: PLC0415

    print(json.dumps(status) if options.json else status_text(status))


def _stop(options: argparse.Namespace) -> None:
    # Ray takes seconds to import while the run goes on, and is not needed where its driver is.
    from cluster.claim import STOP_DEADLINE_S, is_driven_elsewhere, stop_driver  # noqa: PLC0415

    if is_driven_elsewhere(options.run):
        from cluster.control import stop_elsewhere  # noqa: PLC0415

        stop_elsewhere(options.run, STOP_DEADLINE_S)
    else:
        stop_driver(Path(options.run))
    print(f"{options.run} has stopped; selfplay resume {options.run} continues it.")


def sizes_of(texts: list[str]) -> dict[str, int]:
    """`rollout=6 judge=1` as {rollout: 6, judge: 1}. Raises UserError where it is not that."""
    from configs.errors import UserError  # noqa: PLC0415

    sizes: dict[str, int] = {}
    for text in texts:
        if not re.fullmatch(r"\w+=\d+", text):
            raise UserError(f"{text!r}: write FLEET=N, for example rollout=6")
        fleet, _, size = text.partition("=")
        if fleet in sizes:
            raise UserError(f"{fleet} has two sizes here: give it one")
        sizes[fleet] = int(size)
    return sizes
