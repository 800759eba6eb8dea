"""The command line: exit codes, where words go, and that --help is immediate."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from cluster import cli
from cluster.faults import RunError
from configs.errors import DISK_REMEDIES, UserError, naming
from learner.errors import LearnerError
from tests.conftest import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def selfplay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def token(tmp_path_factory, monkeypatch) -> Path:
    """The file of the token, of a home of these tests' own; what a command sets is undone."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return home / ".ray" / "auth_token"


@pytest.fixture
def fake_run(monkeypatch) -> list[tuple]:
    """Stands in for cluster.run, whose import takes Ray; returns the calls it got."""
    calls: list[tuple] = []
    names = ("train", "resume", "export")
    module = types.ModuleType("cluster.run")
    for name in names:
        setattr(module, name, lambda *given, name=name, **more: calls.append((name, *given, *more)))
    monkeypatch.setitem(sys.modules, "cluster.run", module)
    monkeypatch.setattr("cluster.run", module, raising=False)
    return calls


COMMANDS = [
    "train", "resume", "stop", "plan", "export", "report", "status", "scale", "evaluate",
    "experiment", "submit",
]  # fmt: skip


def test_help_names_every_command():
    done = selfplay("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout


def test_help_imports_nothing_heavy():
    heavy = "torch transformers ray vllm deepspeed matplotlib pydantic".split()
    code = f"import sys, cluster.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_users_mistake_is_one_sentence_and_exit_code_2():
    done = selfplay("plan", "configs/quickstart.yaml", "rollout.replica=2")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("selfplay: override rollout.replica=2: unknown key")
    assert len(done.stderr.splitlines()) == 1


def test_overrides_may_stand_behind_an_option(tmp_path, capsys):
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("nodes: [{name: a, cpus: 8, memory_gib: 32}]")
    command = ["plan", str(QUICKSTART), "queries=4", "--cluster", str(nodes), "answers=2"]
    assert cli.main(command) == 0
    assert "4 queries × 2 answers" in capsys.readouterr().out
    for wrong in ("--nonsense", "-x"):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*command, wrong])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["resume", str(tmp_path), "queries=4"])


def test_plan_prints_the_placement(tmp_path, capsys):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("nodes: [{name: laptop, cpus: 2, memory_gib: 16}]")
    assert cli.main(["plan", str(QUICKSTART), "--cluster", str(cluster)]) == 0
    out = capsys.readouterr().out
    assert "learner 0" in out
    assert "reward_solved 0" in out


def test_commands_reach_the_run(fake_run, tmp_path, capsys):
    assert cli.main(["train", str(QUICKSTART), "seed=3", f"run_dir={tmp_path}"]) == 0
    assert cli.main(["resume", "runs/x"]) == 0
    assert cli.main(["export", "runs/x", "out", "--best"]) == 0
    train, *others = fake_run
    assert (train[0], train[1].seed, train[1].run_dir) == ("train", 3, tmp_path)
    run = Path("runs/x")
    assert others == [("resume", run), ("export", run, Path("out"), "best")]


@pytest.mark.parametrize(
    "command",
    [
        ["train", str(QUICKSTART)],
        ["plan", str(QUICKSTART)],
        ["resume", "runs/x"],
        ["status", "runs/x"],
        ["scale", "runs/x", "rollout=2"],
        ["evaluate", "math", "runs/x"],
        ["experiment", "configs/experiments/playground.yaml"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_has_ray_show_its_token(token, monkeypatch, command):
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # as in a process of its own
    shown = []
    options = cli._options(command)
    options.command = lambda _: shown.append(os.environ.get("RAY_AUTH_MODE"))
    monkeypatch.setattr(cli, "_options", lambda _: options)
    assert cli.main(command) == 0
    token.write_text("of the head")
    assert cli.main(command) == 0
    assert shown == [None, "token"]


def test_a_token_that_cannot_be_read_is_one_sentence(fake_run, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    assert cli.main(["resume", "runs/x"]) == 2
    assert "selfplay: RAY_AUTH_TOKEN_PATH /nowhere cannot be read" in capsys.readouterr().err
    assert not fake_run


def test_train_warns_of_the_printed_kl_before_it_starts(fake_run, capsys):
    assert cli.main(["train", str(QUICKSTART.with_name("llama-3.2-3b-lsp-paper.yaml"))]) == 0
    assert "selfplay: warning: learner.kl: k1 in the loss" in capsys.readouterr().err
    assert fake_run


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (UserError("name the key"), 2, "selfplay: name the key\n"),
        (RunError("64 groups dropped in a row"), 1, "selfplay: 64 groups dropped in a row\n"),
        (LearnerError("no place for the learner"), 1, "selfplay: no place for the learner\n"),
        (KeyboardInterrupt(), 130, "selfplay: interrupted\n"),
    ],
)
def test_how_a_run_ends_is_said_in_a_sentence(fake_run, monkeypatch, capsys, error, code, expected):
    def resume(run: Path) -> None:
        raise error

    monkeypatch.setattr(sys.modules["cluster.run"], "resume", resume)
    assert cli.main(["resume", "runs/x"]) == code
    assert capsys.readouterr().err == expected


def test_a_run_errors_cause_is_shown(fake_run, monkeypatch, capsys):
    def resume(run: Path) -> None:
        raise RunError("the learner is lost") from OSError("no space left")

    monkeypatch.setattr(sys.modules["cluster.run"], "resume", resume)
    assert cli.main(["resume", "runs/x"]) == 1
    assert "OSError: no space left" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(fake_run, monkeypatch):
    def resume(run: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["cluster.run"], "resume", resume)
    with pytest.raises(ZeroDivisionError):
        cli.main(["resume", "runs/x"])


def disk_error(code: int, name: str | None) -> OSError:
    return OSError(code, os.strerror(code), name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPERM])
def test_a_disk_that_cannot_be_written_is_named_with_the_remedy(
    fake_run, monkeypatch, capsys, code
):
    def resume(run: Path) -> None:
        with naming(Path("runs/x/metrics.jsonl")):
            raise disk_error(code, None)

    monkeypatch.setattr(sys.modules["cluster.run"], "resume", resume)
    assert cli.main(["resume", "runs/x"]) == 2
    said = capsys.readouterr().err
    assert said == f"selfplay: runs/x/metrics.jsonl: {os.strerror(code)}: {DISK_REMEDIES[code]}\n"


@pytest.mark.parametrize(
    "error",
    [disk_error(errno.ENOENT, "runs/x/state.json"), disk_error(errno.ENOSPC, None)],
    ids=["a file we lost", "no file's name"],
)
def test_another_fault_of_the_system_keeps_its_traceback(fake_run, monkeypatch, error):
    def resume(run: Path) -> None:
        raise error

    monkeypatch.setattr(sys.modules["cluster.run"], "resume", resume)
    with pytest.raises(OSError, match=error.strerror):
        cli.main(["resume", "runs/x"])


def test_functions_are_found_in_the_current_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_alone.py").write_text("def verify(query, answer, reference): return 1.0")
    (tmp_path / "cluster.yaml").write_text("nodes: [{name: laptop, cpus: 2, memory_gib: 16}]")
    monkeypatch.chdir(tmp_path)
    # As the installed command starts: without the current directory.
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    named = "rewards.parts.0.function=mine_alone:verify"
    assert cli.main(["plan", str(QUICKSTART), named, "--cluster", "cluster.yaml"]) == 0


def test_report_of_what_is_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is no run directory and no experiment's" in capsys.readouterr().err
