"""The command line of `selfplay submit`; imports wait for the submission."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.submit import Cluster

EPILOG = """\
examples:
  selfplay submit configs/llama-3.2-3b-lsp.yaml run_dir=/shared/runs/lsp rollout.replicas=6
  selfplay submit --address http://HEAD:8265 --detach CONFIG run_dir=/shared/runs/lsp
  selfplay submit --follow JOB                           its log, until it ends
  selfplay submit --stop JOB                             write a checkpoint and end

Run from the project's folder, which travels, less what .rayignore and .gitignore name. The same
command again continues the run. Ctrl-C ends the following, never the job. Exit code: the job's end.
The token is looked for where Ray looks: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.
"""
DETACHED = 130


def add_submit(commands: Any) -> None:
    """Add `submit` to the commands of the command line."""
    what = "train on a Ray cluster: submit a job, follow it, stop it"
    parser = commands.add_parser(
        "submit",
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, nargs="?", help="as for train")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="settings changed")
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the head's dashboard; otherwise RAY_API_SERVER_ADDRESS, RAY_ADDRESS or"
        " http://127.0.0.1:8265",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--detach", action="store_true", help="do not follow the job")
    instead.add_argument("--follow", metavar="JOB", help="follow a job instead of submitting one")
    instead.add_argument("--stop", metavar="JOB", help="stop a job instead of submitting one")
    parser.set_defaults(command=_submit)


def _submit(options: argparse.Namespace) -> None:
    from cluster.submit import Cluster, dashboard_address  # noqa: PLC0415
    from configs.errors import UserError  # noqa: PLC0415

    job = options.follow or options.stop
    if (job is None) == (options.config is None):
        raise UserError("name a CONFIG to submit, or a JOB to --follow or to --stop")
    address = dashboard_address(options.address, os.environ)
    if options.follow is not None:
        _follow(Cluster(address), options.follow, options.address)
    elif options.stop is not None:
        _stop(Cluster(address), options.stop)
    else:
        _start(options, address)


def _start(options: argparse.Namespace, address: str) -> None:
    """Check, pack and submit; follow unless told otherwise."""
    from cluster.submit import (  # noqa: PLC0415
        Cluster,
        check_travels,
        describe,
        packed,
        travelling_config,
    )
    from configs.load import load  # noqa: PLC0415

    config = load(options.config, options.overrides)
    project = Path.cwd()
    with packed(project) as package:
        name = travelling_config(options.config, project, package)
        check_travels(config, project, package)
        cluster = Cluster(address)
        print(f"run      {config.run_dir.name} in {config.run_dir}")
        print(f"travels  {describe(package)}", flush=True)
        command = ["python", "-m", "cluster", "train", name, *options.overrides]
        job = cluster.submit(command, package, config.run_dir.name)
    print(f"job      {job} at {address}")
    _say_how(job, options.address)
    if not options.detach:
        _follow(cluster, job, options.address)


def _follow(cluster: Cluster, job: str, given: str | None) -> None:
    """Print a job's log until its end, which decides the exit code; Ctrl-C leaves it alone."""
    from cluster.submit import check_end  # noqa: PLC0415

    try:
        asyncio.run(cluster.print_logs(job))
    except KeyboardInterrupt:
        print(f"\nselfplay: detached; job {job} goes on", file=sys.stderr)
        _say_how(job, given)
        raise SystemExit(DETACHED) from None
    check_end(cluster.job(job))


def _stop(cluster: Cluster, job: str) -> None:
    """Stop a job and wait for its end; Ctrl-C ends the waiting."""
    cluster.ask_to_stop(job)
    print(f"Job {job} is asked to end: it writes its checkpoint first.", flush=True)
    print(f"It has {cluster.wait_for(job)}.")


def _say_how(job: str, given: str | None) -> None:
    at = f" --address {given}" if given else ""
    print(f"follow   selfplay submit --follow {job}{at}")
    print(f"stop     selfplay submit --stop {job}{at}", flush=True)
