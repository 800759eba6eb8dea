"""Runs on a Ray cluster: what travels, and what is refused before anything is sent."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails

from benchmarks.local_cluster import clean_environment
from cluster import cli
from cluster.connection import connect
from cluster.faults import RunError
from cluster.plan import nodes_from
from cluster.submit import (
    DASHBOARD,
    Cluster,
    check_end,
    check_travels,
    dashboard_address,
    describe,
    packed,
    travelling_config,
)
from cluster.token import find_token, make_token
from configs.errors import UserError
from configs.load import RAY_JOB_VARIABLE, load, require_shared_run_dir
from tests.cluster.head import PACKAGES
from tests.conftest import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


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
        *(
            (
                f"source={{kind: mix, dataset: {{path: data/none{suffix}}}}}",
                f"source.dataset.path data/none{suffix}: there is no such file",
            )
            for suffix in (".json", ".jsonl", ".jsonl.gz", ".parquet")
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


def test_of_tokens_made_at_the_same_time_one_stays_and_others_cannot_read_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    together = threading.Barrier(8)

    def make(_: int) -> str | None:
        together.wait()
        make_token()
        return find_token(os.environ)

    with ThreadPoolExecutor(8) as pool:
        (token,) = set(pool.map(make, range(8)))
    assert token is not None
    assert len(token) == 64
    (made,) = (tmp_path / ".ray").iterdir()
    assert made.stat().st_mode & 0o077 == 0


def test_no_token_and_an_unreadable_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_token({}) is None
    assert find_token({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"}) is None
    with pytest.raises(UserError, match=r"RAY_AUTH_TOKEN_PATH .*none cannot be read"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("token", "error"),
    [("", AuthenticationError("no token\nwas found.")), ("x", ConnectionError("no answer"))],
)
def test_a_cluster_that_cannot_be_reached_is_one_sentence_with_the_remedy(
    tmp_path, monkeypatch, token, error
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setattr("ray.is_initialized", lambda: False)

    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    remedy = "refuses the token found here" if token else "asks for a token and none is here"
    for reach in (lambda: nodes_from(None), connect):
        with pytest.raises(
            UserError, match=rf"^RAY_ADDRESS head:6379 cannot.*\(no .*{remedy}: set"
        ):
            reach()


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
