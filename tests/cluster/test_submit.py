"""Runs on a Ray cluster: what travels, what is refused here, and a real head with a token.

The head is a process of its own, and whatever opens a Ray session is one too: the Ray session of
the other tests in this process is left alone.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from ray.job_submission import JobDetails

from cluster import cli
from cluster.faults import RunError
from cluster.submit import (
    DASHBOARD,
    Cluster,
    check_end,
    check_travels,
    dashboard_address,
    describe,
    find_token,
    packed,
    travelling_config,
)
from configs.errors import UserError
from configs.load import RAY_JOB_VARIABLE, load, require_shared_run_dir
from configs.provenance import commit

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
PACKAGES = {"actors", "cluster", "configs", "evaluation", "learner", "playground", "rewards"}
TOKEN = "a-token-of-this-test"
START_TRIES, START_DEADLINE_S = 3, 70.0
"""A raylet gives its agents 15 s, which a busy machine may not."""


# What travels


@pytest.mark.parametrize("ignore_gitignore", ["0", "1"])
def test_only_what_a_run_needs_travels_from_this_checkout(monkeypatch, ignore_gitignore):
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", ignore_gitignore)
    with packed(ROOT) as package:
        assert set(package.tops()) == PACKAGES
        assert package.total < 2_000_000
        assert package.total == package.path.stat().st_size >= sum(package.sizes.values())
        assert not [name for name in package.sizes if "__pycache__" in name]
        for top in PACKAGES:
            here = (path for path in (ROOT / top).rglob("*") if path.is_file())
            kept = {p.relative_to(ROOT).as_posix() for p in here if "__pycache__" not in p.parts}
            assert kept <= set(package.sizes)
    assert not package.path.exists()


@pytest.fixture
def project(tmp_path) -> Path:
    """A small project of the same shape, with everything in it that must stay behind."""
    project = tmp_path / "project"
    for name in (
        "cluster/__main__.py configs/x.yaml mine.py data/train.jsonl .git/HEAD .venv/bin/python"
        " .venv-peer/bin/python .ruff_cache/x runs/x/model.safetensors tests/test_x.py docs/x.md"
        " benchmarks/results/x.png cluster/__pycache__/x.pyc selfplay.egg-info/PKG-INFO"
    ).split():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    shutil.copy(ROOT / ".rayignore", project)
    shutil.copy(QUICKSTART, project / "configs" / "x.yaml")
    return project


def test_what_a_user_adds_travels_and_junk_stays(project):
    with packed(project) as package:
        assert set(package.sizes) == {
            "cluster/__main__.py",
            "configs/x.yaml",
            "mine.py",
            "data/train.jsonl",
        }
        assert describe(package).startswith("4 files, 0.0 MB: cluster, configs, data, mine.py")


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not the project's folder"), packed(tmp_path):
        pass


def test_a_large_package_is_refused_by_its_largest_parts(project, monkeypatch):
    (project / "data" / "train.jsonl").write_bytes(b"x" * 2_000_000)
    monkeypatch.setattr("cluster.submit.LARGEST_BYTES", 1_000_000)
    with pytest.raises(UserError, match=r"2\.0 MB \(data 2\.0 MB, .*\.rayignore"), packed(project):
        pass


# What a configuration names


def checked(project: Path, *overrides: str) -> None:
    with packed(project) as package:
        check_travels(load(QUICKSTART, overrides), project, package)


PROMPTS = ("challenger.prompt=null", "rewards.quality.prompt=null")
SHARED = ("run_dir=/shared/runs/x", *PROMPTS)


@pytest.mark.parametrize(
    "override",
    [
        "challenger.prompt=/shared/prompt.txt",
        "challenger.prompt=mine.py",
        "challenger.prompt=./data/../mine.py",
        "heldout.verifier=mine:verify",
        "heldout.verifier=installed_elsewhere:verify",
        "model={path: meta-llama/Llama-3.2-1B-Instruct}",
        "model={path: /shared/model}",
    ],
)
def test_what_the_cluster_has_passes(project, override):
    checked(project, *SHARED, override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("challenger.prompt=docs/x.md", "challenger.prompt docs/x.md does not travel"),
        ("challenger.prompt=../prompt.txt", "challenger.prompt ../prompt.txt does not travel"),
        ("challenger.prompt=none.txt", "challenger.prompt none.txt: there is no such file"),
        ("heldout.verifier=tests.test_x:f", "heldout.verifier tests.test_x:f does not travel"),
        ("heldout.verifier=tests:f", "heldout.verifier tests:f does not travel"),
        ("model={path: runs/x}", "model.path runs/x does not travel"),
        (
            "rewards.parts.0={kind: preference, name: solved, model: runs/x}",
            "rewards.parts.0.model runs/x does not travel",
        ),
        (
            "source={kind: mix, dataset: {path: data/none.jsonl}}",
            "source.dataset.path data/none.jsonl: there is no such file",
        ),
    ],
)
def test_what_the_cluster_would_not_have_is_refused(project, override, said):
    (project.parent / "prompt.txt").touch()
    kind = ("challenger.reward=quality", "challenger.learnability_part=null")
    with pytest.raises(UserError) as raised:
        checked(project, *SHARED, *kind, override)
    assert str(raised.value).startswith(said)
    assert len(str(raised.value).splitlines()) == 1


def test_a_relative_run_dir_is_refused_as_the_job_would(project, monkeypatch):
    with pytest.raises(UserError) as here:
        checked(project, *PROMPTS)
    monkeypatch.setenv(RAY_JOB_VARIABLE, "{}")
    with pytest.raises(UserError) as there:
        require_shared_run_dir(load(QUICKSTART).run_dir)
    assert str(here.value) == str(there.value)


def test_every_preset_travels():
    with packed(ROOT) as package:
        for preset in sorted((ROOT / "configs").glob("*.yaml")):
            name = travelling_config(preset, ROOT, package)
            assert name == f"configs/{preset.name}"
            check_travels(load(preset, ["run_dir=/shared/runs/x"]), ROOT, package)


def test_a_configuration_elsewhere_is_refused(project):
    with packed(project) as package:
        assert travelling_config(Path("configs/x.yaml"), Path(), package) == "configs/x.yaml"
        with pytest.raises(UserError, match="does not travel with the project"):
            travelling_config(QUICKSTART, project, package)


# Address, token, end


@pytest.mark.parametrize(
    ("given", "environment", "address"),
    [
        (None, {}, DASHBOARD),
        ("http://a:1/", {"RAY_API_SERVER_ADDRESS": "http://b:1"}, "http://a:1"),
        (None, {"RAY_API_SERVER_ADDRESS": "https://b", "RAY_ADDRESS": "c:6379"}, "https://b"),
        (None, {"RAY_ADDRESS": "http://c:1"}, "http://c:1"),
        (None, {"RAY_ADDRESS": "auto"}, DASHBOARD),
    ],
)
def test_the_address(given, environment, address):
    assert dashboard_address(given, environment) == address


@pytest.mark.parametrize(
    ("given", "environment", "named"),
    [("head:8265", {}, "--address head:8265"), (None, {"RAY_ADDRESS": "c:6379"}, "RAY_ADDRESS c")],
)
def test_an_address_of_another_kind_is_refused(given, environment, named):
    with pytest.raises(UserError, match=f"^{named}.*is not the address of a Ray dashboard"):
        dashboard_address(given, environment)


@pytest.mark.parametrize("named", [[], ["RAY_AUTH_TOKEN_PATH"], ["RAY_AUTH_TOKEN"]])
def test_the_token_is_the_one_that_ray_finds(tmp_path, monkeypatch, named):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    (tmp_path / "named").write_text(" of-path\n")
    places = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "named"), "RAY_AUTH_TOKEN": "of-variable"}
    # Each place comes before those in front of it.
    chosen = dict(list(places.items())[: 0 if not named else list(places).index(named[0]) + 1])
    environment = clean_environment(tmp_path) | chosen
    monkeypatch.setenv("HOME", str(tmp_path))
    ray = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token"]
    done = subprocess.run(ray, env=environment, capture_output=True, text=True, check=True)
    assert find_token(environment) == done.stdout


def test_no_token_and_an_unreadable_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_token({}) is None
    assert find_token({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"}) is None
    with pytest.raises(UserError, match=r"RAY_AUTH_TOKEN_PATH .*none cannot be read"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})


def ended(status: str, code: int | None = None) -> JobDetails:
    known = {"submission_id": "j", "status": status, "driver_exit_code": code}
    return JobDetails.model_validate({"type": "SUBMISSION", "entrypoint": ""} | known)


def test_how_a_job_ended_is_how_the_command_ends():
    check_end(ended("SUCCEEDED", 0))
    for details, error, said in (
        (ended("STOPPED"), RunError, "was stopped"),
        (ended("FAILED", 1), RunError, "exit code 1"),
        (ended("FAILED", 2), UserError, "mistake"),
        (ended("FAILED"), RunError, "before it ran"),
        (ended("RUNNING"), RunError, "follow it again"),
    ):
        with pytest.raises(error, match=said):
            check_end(details)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a CONFIG to submit, or a JOB"),
        (["configs/quickstart.yaml", "--follow", "j"], "name a CONFIG to submit, or a JOB"),
        (["--follow", "j"], "no Ray dashboard answers at http://127.0.0.1:1 "),
        (["configs/quickstart.yaml", "seed=x", "--address", "http://127.0.0.1:1"], "override seed"),
    ],
)
def test_mistakes_are_sentences_before_anything_is_sent(monkeypatch, capsys, arguments, said):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.chdir(ROOT)
    assert cli.main(["submit", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"selfplay: {said}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (http.server.SimpleHTTPRequestHandler, "takes no Ray jobs"),  # 404
        (http.server.BaseHTTPRequestHandler, "no Ray dashboard answers"),  # 501
    ],
)
def test_a_server_of_another_kind_is_refused(monkeypatch, handler, said):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # which it sets
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=said):
            Cluster(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_silent_address_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # which it sets
    monkeypatch.setattr("cluster.submit.ANSWER_DEADLINE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=r"no Ray dashboard answers .*ReadTimeout"):
            Cluster(address)


# A head


@dataclass(frozen=True)
class Head:
    """A running head node, and an environment in which its token is found."""

    address: str
    environment: dict[str, str]


def clean_environment(home: Path) -> dict[str, str]:
    """This process's, without what points at a Ray cluster or a token, at home in `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return kept | {"HOME": str(home), "PATH": path}


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head on loopback with token authentication."""
    # Ray's sockets want a short path.
    with tempfile.TemporaryDirectory(prefix="head-") as folder:
        home = Path(folder)
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(TOKEN)
        environment = clean_environment(home)
        for _ in range(START_TRIES):
            with started(home, environment) as address:
                if address is not None:
                    yield Head(address, environment)
                    return
        pytest.fail(f"no head came up in {START_TRIES} tries")


@contextlib.contextmanager
def started(home: Path, environment: dict[str, str]) -> Iterator[str | None]:
    """A head's dashboard address, None where it did not come up."""
    names = "port dashboard-port ray-client-server-port dashboard-agent-listen-port"
    names += " dashboard-agent-grpc-port runtime-env-agent-port metrics-export-port"
    ports = dict(zip(names.split(), free_ports(7), strict=True))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    command += ["--dashboard-host=127.0.0.1", f"--temp-dir={home / 'ray'}", "--num-cpus=2"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        yield address if answers(address, process) else None
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(address: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a head takes jobs; False where it ends, or time does."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    def nodes() -> bool:
        with contextlib.suppress(requests.ConnectionError):
            reply = requests.get(f"{address}/nodes?view=summary", headers=bearer, timeout=30)
            return reply.ok and bool(reply.json()["data"]["summary"])
        return False

    return until(lambda: nodes() or process.poll() is not None) and process.poll() is None


def until(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; False where it does not in time."""
    deadline = time.monotonic() + START_DEADLINE_S
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return held


def selfplay(head: Head, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster", "submit", "--address", head.address, *arguments]
    environment = head.environment | changed
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


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


def test_a_submission_travels_runs_and_ends_as_its_driver(head, tmp_path):
    # More engines than the cluster has room for: the driver itself says so.
    settings = (f"run_dir={tmp_path / 'named'}", "rollout.replicas=100")
    done = selfplay(head, "configs/quickstart.yaml", *settings)
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
        from cluster.run import connect

        @ray.remote
        def there():
            import configs.load
            return configs.load.__file__.startswith(os.getcwd())

        connect()
        print("the token is asked for:", os.environ["RAY_AUTH_MODE"])
        print("nodes:", len(ray.nodes()), "workers have the project:", ray.get(there.remote()))
        """
    )
    done = selfplay(head, "--follow", job)
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
    done = selfplay(head, "--stop", job)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("It has STOPPED.\n")
    assert (tmp_path / "saved").exists()

    again = selfplay(head, "--stop", job)
    assert again.returncode == 2
    assert again.stderr == f"selfplay: job {job} is not running, it has STOPPED\n"
    followed = selfplay(head, "--follow", job)
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
    done = selfplay(head, "--detach", *arguments)
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
    done = selfplay(head, "--follow", "any", **changed)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"selfplay: the Ray cluster at {head.address} {said}")
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_job_is_named(head):
    # What is given comes before what is set.
    done = selfplay(head, "--stop", "none", RAY_ADDRESS="http://127.0.0.1:1")
    assert done.returncode == 2
    assert (
        done.stderr == f"selfplay: {head.address} knows no job none: ray job list shows its jobs\n"
    )
