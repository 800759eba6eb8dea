"""Runs on a Ray cluster, through Ray's own job client: packed, submitted, followed, stopped.

The project is packed once, and what is checked and listed is that package. Ray's token
authentication is left as the cluster has it; the token is looked for where Ray looks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import requests
from pydantic import BaseModel
from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
from ray._private.runtime_env.packaging import create_package
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.claim import STOP_DEADLINE_S
from cluster.dataset import SUFFIXES as DATA_SUFFIXES
from cluster.faults import RunError
from cluster.token import find_token, refusal
from configs.errors import UserError
from configs.load import require_shared_run_dir
from configs.provenance import commit
from configs.schema import RunConfig

log = logging.getLogger(__name__)

DASHBOARD = "http://127.0.0.1:8265"
"""Where a head's dashboard listens unless it is told otherwise."""
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
LARGEST_BYTES = 100 * 1024**2
"""Most that a head's dashboard takes."""
ANSWER_DEADLINE_S = 10.0
LOOK_EVERY_S = 1.0
STOP_MARGIN_S = 30.0
JOB_ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_DEADLINE_S:.0f}"}
"""Ray kills a job 3 s after it asks it to end unless told otherwise, and a run takes longer to
save. The job's supervisor reads this, an actor in the job's environment."""
USERS_MISTAKE = 2
"""Exit code of a driver that ended over its configuration or command."""
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
FUNCTION = re.compile(r"([\w.]+):\w+")


@dataclass(frozen=True)
class Package:
    """A zip file of the project as it travels, and the size of each of its files in bytes."""

    path: Path
    sizes: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes that travel."""
        return self.path.stat().st_size

    def tops(self) -> dict[str, int]:
        """Bytes by the first part of the path, the largest first."""
        tops: defaultdict[str, int] = defaultdict(int)
        for name, size in self.sizes.items():
            tops[name.partition("/")[0]] += size
        return dict(sorted(tops.items(), key=lambda item: -item[1]))

    def holds(self, path: str) -> bool:
        """Whether a file, or anything below a folder, travels."""
        return path in self.sizes or any(name.startswith(f"{path}/") for name in self.sizes)


@contextlib.contextmanager
def packed(project: Path) -> Iterator[Package]:
    """The project as `ray job submit --working-dir` would pack it; gone when the context ends.

    Raises UserError where `project` is not this project, or the package is too large.
    """
    if not (project / "cluster" / "__main__.py").is_file():
        raise UserError(
            f"{project} is not the project's folder, which is what travels: change to the folder"
            " that holds cluster/ and configs/"
        )
    with tempfile.TemporaryDirectory(prefix="selfplay-") as folder:
        path = Path(folder) / "project.zip"
        gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE) != "1"
        create_package(str(project), path, include_gitignore=gitignore, logger=log)
        with zipfile.ZipFile(path) as archive:
            package = Package(path, {file.filename: file.file_size for file in archive.infolist()})
        _check_size(package)
        yield package


def _check_size(package: Package) -> None:
    if package.total <= LARGEST_BYTES:
        return
    largest = ", ".join(f"{top} {_mb(size)}" for top, size in [*package.tops().items()][:3])
    raise UserError(
        f"the project would travel as {_mb(package.total)} ({largest}), and a Ray cluster takes"
        f" {_mb(LARGEST_BYTES)}: name what stays here in .rayignore"
    )


def describe(package: Package) -> str:
    """One line: how many files, how many bytes, and what stands at the top level."""
    return f"{len(package.sizes)} files, {_mb(package.total)}: {', '.join(sorted(package.tops()))}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def travelling_config(path: Path, project: Path, package: Package) -> str:
    """The configuration's path from the project's folder, by which the cluster finds it."""
    name = os.path.relpath(path, project)
    if not package.holds(name):
        raise UserError(
            f"{path} does not travel with the project: put it into the project's folder, where"
            " neither .rayignore nor .gitignore names it"
        )
    return name


def check_travels(config: RunConfig, project: Path, package: Package) -> None:
    """Check that what a configuration names is on the cluster too, as far as that shows here.

    Absolute paths are taken to be shared. Raises UserError, one line per problem.
    """
    problems = []
    try:
        require_shared_run_dir(config.run_dir, submitted=True)
    except UserError as error:
        problems.append(str(error))
    for key, value, path, needed in _named(config):
        path = os.path.normpath(path)
        if os.path.isabs(path) or package.holds(path):
            continue
        if (project / path).exists():
            problems.append(
                f"{key} {value} does not travel with the project (it lies outside, or .rayignore or"
                " .gitignore names it): name it by an absolute path that every node shares, or let"
                " it travel"
            )
        elif needed:
            problems.append(f"{key} {value}: there is no such file in {project}")
    if problems:
        raise UserError("\n".join(problems))


def _named(config: RunConfig) -> Iterator[tuple[str, str, str, bool]]:
    """(key, value, path, whether it must be a file) of whatever a configuration names."""
    for key, value in _leaves(config):
        if key == "run_dir":
            continue
        if isinstance(value, Path):
            yield key, str(value), str(value), True
        elif not isinstance(value, str):
            continue
        elif module := FUNCTION.fullmatch(value):
            stem = module[1].replace(".", "/")
            yield key, value, stem, False
            yield key, value, f"{stem}.py", False
        elif value and key.rpartition(".")[2] in ("path", "model"):
            yield key, value, value, value.endswith(DATA_SUFFIXES)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a configuration by its dotted key."""
    if isinstance(value, BaseModel):
        children = iter(value)
    elif isinstance(value, list):
        children = ((str(place), child) for place, child in enumerate(value))
    else:
        yield key, value
        return
    for name, child in children:
        yield from _leaves(child, f"{key}.{name}" if key else name)


def dashboard_address(given: str | None, environment: Mapping[str, str]) -> str:
    """The address of the head's dashboard: the one given, Ray's variables, or this machine.

    Raises UserError for an address of another kind, to which no job can be submitted.
    """
    named = {"--address": given} | {name: environment.get(name) for name in ADDRESS_VARIABLES}
    for name, value in named.items():
        if not value or (name == "RAY_ADDRESS" and value == "auto"):
            continue
        if not value.startswith(("http://", "https://")):
            raise UserError(
                f"{name} {value} is not the address of a Ray dashboard: name it with --address"
                " http://HEAD:8265"
            )
        return value.rstrip("/")
    return DASHBOARD


class Cluster:
    """A Ray cluster that takes jobs."""

    def __init__(self, address: str) -> None:
        """Connect; UserError where nothing answers at `address`, or the token is not its own."""
        self.address = address
        token = find_token(os.environ)
        for logger in CHATTY:
            logging.getLogger(logger).setLevel(logging.WARNING)
        # Ray's client puts its variables above the address it is given.
        os.environ[ADDRESS_VARIABLES[0]] = address
        with self._asking():
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            # Ray's client waits for an answer without end, and logs that a token is missing.
            url = f"{address}/api/version"
            reply = requests.get(url, headers=headers, timeout=ANSWER_DEADLINE_S)
            if reply.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise AuthenticationError(reply.text)
            try:
                self._client = JobSubmissionClient(address, headers=headers)
            except RuntimeError as error:
                raise UserError(f"what answers at {address} takes no Ray jobs: {error}") from error

    def submit(self, command: Sequence[str], package: Package, name: str) -> str:
        """Start a job that runs `command` in the package; its id."""
        with self._asking():
            return self._client.submit_job(
                entrypoint=shlex.join(command),
                runtime_env={"working_dir": str(package.path), "env_vars": JOB_ENVIRONMENT},
                metadata={"job_name": name, "git_commit": commit()},
            )

    def job(self, job: str) -> JobDetails:
        """What the cluster knows of a job; UserError where it knows none of that id."""
        with self._asking():
            try:
                return self._client.get_job_info(job)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
        raise UserError(f"{self.address} knows no job {job}: ray job list shows its jobs")

    async def print_logs(self, job: str) -> None:
        """Print a job's log from its first line until the job ends."""
        self.job(job)
        try:
            async for lines in self._client.tail_job_logs(job):
                print(lines, end="", flush=True)
        except (RuntimeError, aiohttp.ClientError) as error:
            raise RunError(
                f"the connection to {self.address} broke; the job is not ended by that: follow it"
                f" again with selfplay submit --follow {job}"
            ) from error

    def ask_to_stop(self, job: str) -> None:
        """Ask a job to end; UserError where it has ended."""
        status = self.job(job).status
        with self._asking():
            if not self._client.stop_job(job):
                raise UserError(f"job {job} is not running, it has {status}")

    def wait_for(self, job: str) -> JobStatus:
        """How a job that was asked to end has ended; RunError where it does not."""
        deadline = time.monotonic() + STOP_DEADLINE_S + STOP_MARGIN_S
        while not (status := self.job(job).status).is_terminal():
            if time.monotonic() > deadline:
                raise RunError(f"job {job} has not ended; see selfplay submit --follow {job}")
            time.sleep(LOOK_EVERY_S)
        return status

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """What a cluster's refusal or silence means to who asked."""
        try:
            yield
        except AuthenticationError:
            raise UserError(f"the Ray cluster at {self.address} {refusal()}") from None
        except (ConnectionError, requests.RequestException) as error:
            raise UserError(
                f"no Ray dashboard answers at {self.address} ({type(error).__name__}): name it with"
                " --address http://HEAD:8265, and see that the cluster runs"
            ) from error


def check_end(details: JobDetails) -> None:
    """Return where a job has succeeded; raise with the exit code of its driver where it has not."""
    job, status = details.submission_id, details.status
    if status == JobStatus.SUCCEEDED:
        return
    if status == JobStatus.STOPPED:
        raise RunError(f"job {job} was stopped; the same submission continues its run")
    if status != JobStatus.FAILED:
        raise RunError(f"the log of job {job} ended, and the job is {status}: follow it again")
    if details.driver_exit_code is None:
        raise RunError(f"job {job} failed before it ran: {details.message}")
    if details.driver_exit_code == USERS_MISTAKE:
        raise UserError(f"job {job} ended over the mistake that its last line names")
    raise RunError(f"job {job} failed with exit code {details.driver_exit_code}; see its log")
