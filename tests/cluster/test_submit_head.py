"""Submitting to a real Ray head with a token."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from benchmarks.local_cluster import TOKEN, Head, running_head, until
from cluster.submit import Cluster, packed
from configs.provenance import commit
from tests.cluster.head import PACKAGES, commanded, submitted
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as head:
        yield head


@pytest.fixture
def cluster(head, monkeypatch) -> Cluster:
    """The head's job client; it speaks HTTP only, and opens no Ray session."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # which it sets
    monkeypatch.setenv("HOME", head.environment["HOME"])
    return Cluster(head.address)


@pytest.fixture
def submit(cluster) -> Iterator:
    """Submits Python code from this checkout; what still runs at the end is stopped."""
    jobs = []

    def submit(code: str) -> str:
        with packed(ROOT) as package:
            jobs.append(cluster.submit(["python", "-c", textwrap.dedent(code)], package, "code"))
        return jobs[-1]

    yield submit
    for job in jobs:
        if not cluster.job(job).status.is_terminal():
            cluster.ask_to_stop(job)
            cluster.wait_for(job)


def test_a_command_on_the_cluster_finds_its_token_or_says_what_to_do(head):
    plan = ("plan", "configs/quickstart.yaml", "rollout.replicas=100")
    found = commanded(head, *plan, RAY_ADDRESS=head.gcs)
    assert "the cluster has 2: lower replicas" in found.stderr
    wrong = commanded(head, *plan, RAY_ADDRESS=head.gcs, RAY_AUTH_TOKEN="another's")
    assert wrong.returncode == 2
    (sentence,) = (line for line in wrong.stderr.splitlines() if line.startswith("selfplay"))
    assert sentence.startswith(f"selfplay: RAY_ADDRESS {head.gcs} cannot be reached")
    assert "refuses the token found here: set RAY_AUTH_TOKEN to what" in sentence
    assert "Traceback" not in wrong.stderr


def test_a_submission_travels_runs_and_ends_as_its_driver(head, tmp_path):
    # The cluster has no room for its learner: the driver itself says so.
    settings = (f"run_dir={tmp_path / 'named'}", "learner.cpus=100")
    done = submitted(head, "configs/quickstart.yaml", *settings)
    lines = done.stdout.splitlines()
    assert lines[0] == f"run      named in {tmp_path / 'named'}"
    assert lines[1].startswith("travels  ")
    assert lines[1].endswith(" MB: " + ", ".join(sorted(PACKAGES)))
    job = lines[2].split()[1]
    assert lines[3].endswith(f"selfplay submit --follow {job} --address {head.address}")
    assert lines[4].endswith(f"selfplay submit --stop {job} --address {head.address}")
    assert "python -m cluster train configs/quickstart.yaml" in done.stdout
    assert "selfplay: " in done.stdout, "the driver's sentence"
    assert done.returncode == 2
    assert done.stderr == f"selfplay: job {job} ended over the mistake that its last line names\n"


def test_by_hand_the_same_travels(head):
    code = "import os; print('there:', *sorted(os.listdir()))"
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.address]
    ray += ["--working-dir", ".", "--", "python", "-c", code]
    environment = head.environment | {"RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        ray, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"there: {' '.join(sorted(PACKAGES))}\n" in done.stdout


def test_a_driver_connects_with_the_heads_token_and_its_workers_have_the_project(head, submit):
    job = submit(
        """
        import os, ray
        from cluster.connection import connect

        @ray.remote
        def there():
            import configs.load
            return configs.load.__file__.startswith(os.getcwd())

        connect()
        print("the token is asked for:", os.environ["RAY_AUTH_MODE"])
        print("nodes:", len(ray.nodes()), "workers have the project:", ray.get(there.remote()))
        """
    )
    done = submitted(head, "--follow", job)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the token is asked for: token\n" in done.stdout
    assert "nodes: 1 workers have the project: True\n" in done.stdout
    assert TOKEN not in done.stdout


def test_a_job_that_is_stopped_has_time_to_save(head, submit, cluster, tmp_path):
    # Ray's own 3 s are not enough for this one.
    job = submit(
        f"""
        import pathlib, signal, time

        def save(*_):
            time.sleep(5)
            pathlib.Path({str(tmp_path / "saved")!r}).touch()
            raise SystemExit(0)

        signal.signal(signal.SIGTERM, save)
        pathlib.Path({str(tmp_path / "ready")!r}).touch()
        signal.pause()
        """
    )
    assert until((tmp_path / "ready").exists)
    done = submitted(head, "--stop", job)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("It has STOPPED.\n")
    assert (tmp_path / "saved").exists()

    again = submitted(head, "--stop", job)
    assert again.returncode == 2
    assert again.stderr == f"selfplay: job {job} is not running, it has STOPPED\n"
    followed = submitted(head, "--follow", job)
    assert followed.returncode == 1
    assert "was stopped" in followed.stderr


def test_ctrl_c_ends_the_following_and_not_the_job(head, submit, cluster):
    job = submit("import signal; print('it plays', flush=True); signal.pause()")
    command = [sys.executable, "-m", "cluster", "submit", "--address", head.address]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, "--follow", job],
        cwd=ROOT,
        env=head.environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        assert any(line == "it plays\n" for line in iter(follower.stdout.readline, ""))
        follower.send_signal(signal.SIGINT)
        out, err = follower.communicate()
    assert follower.returncode == 130
    assert err == f"\nselfplay: detached; job {job} goes on\n"
    assert f"selfplay submit --follow {job} --address {head.address}" in out
    assert cluster.job(job).status == "RUNNING"


def test_detached_it_returns_while_the_job_is_there(head, cluster, tmp_path):
    arguments = ("configs/quickstart.yaml", f"run_dir={tmp_path / 'x'}", "rollout.replicas=100")
    done = submitted(head, "--detach", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 5, "no log"
    details = cluster.job(done.stdout.splitlines()[2].split()[1])
    assert not details.status.is_terminal()
    assert details.metadata is not None
    assert details.metadata == {"job_name": "x", "git_commit": commit()}
    cluster.ask_to_stop(str(details.submission_id))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"HOME": "/nonexistent"}, "asks for a token and none is here"),
        ({"RAY_AUTH_TOKEN": "another"}, "refuses the token found here"),
        ({"RAY_AUTH_TOKEN": "another", "RAY_AUTH_MODE": "token"}, "refuses the token found here"),
        (
            {"HOME": "/nonexistent", "RAY_AUTH_MODE": "token"},
            "asks for a token and none is here",
        ),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token, and RAY_AUTH_MODE is disabled"),
    ],
    ids=["missing", "wrong", "wrong, with Ray's mode", "missing, with Ray's mode", "off"],
)
def test_without_its_token_a_cluster_is_refused_in_a_sentence(head, changed, said):
    done = submitted(head, "--follow", "any", **changed)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"selfplay: the Ray cluster at {head.address} {said}")
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_job_is_named(head):
    # What is given comes before what is set.
    done = submitted(head, "--stop", "none", RAY_ADDRESS="http://127.0.0.1:1")
    assert done.returncode == 2
    assert (
        done.stderr == f"selfplay: {head.address} knows no job none: ray job list shows its jobs\n"
    )
