"""Mistakes through the real command: exit code 2, a sentence, no traceback, nothing started.

What each check says in detail is tested where the check is; here it is shown to reach the user.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template

import pytest
import ray

from cluster import cli
from cluster.initial import initial_model
from cluster.signals import STOP_SIGNALS
from cluster.wiring import Wired
from configs.load import RAY_JOB_VARIABLE, load, save_resolved
from learner.checkpoint import CheckpointStore
from tests.conftest import ROOT
from tests.models import save_reward_model

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SOLVED = "{name: solved, kind: verifier, function: 'playground.language:verify', fleet: {cpus: 0}}"
TASTE = f"rewards.parts=[{SOLVED}, {{name: taste, kind: preference, model: $model, fleet: $fleet}}]"
ON_DATA = ["algorithm=grpo", "source.kind=dataset", "rewards.quality=null"]


def taste(model: str, context: int = 256) -> str:
    """An override that adds a preference model to R."""
    return TASTE.replace("$model", model).replace("$fleet", f"{{cpus: 0, context: {context}}}")


def data(path: str) -> list[str]:
    """Overrides that play on a data set."""
    return [*ON_DATA, f"source.dataset={{path: {path}, query_field: text}}"]


@pytest.fixture(scope="module")
def places(tiny_model, reward_model, tmp_path_factory) -> dict[str, Path]:
    """By name: models and data, good and bad."""
    folder = tmp_path_factory.mktemp("places")
    found = {"causal": tiny_model(True), "other": tiny_model(False), "absent": folder / "absent"}
    found["reward"] = reward_model
    found["two"] = save_reward_model(folder / "two", labels=2)
    for name, original in (("untold", "causal"), ("untold_reward", "reward")):
        found[name] = folder / name
        shutil.copytree(found[original], found[name])
        (found[name] / "chat_template.jinja").unlink()
    for name, text in {
        "empty": "",
        "malformed": '{"text": "2 + 2"}\n{"text": "3 +',
        "fieldless": '{"text": "2 + 2"}\n{"question": "3 + 3"}',
    }.items():
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text(text)
    return found


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No mistake may start an actor; the list is what asked for Ray."""
    asked: list[str] = []

    async def start(wired: Wired) -> None:
        pytest.fail("the run started its actors")

    monkeypatch.setattr(Wired, "start", start)
    monkeypatch.setattr(ray, "init", lambda *a, **k: asked.append("ray"))
    monkeypatch.setattr(ray, "shutdown", lambda *a, **k: None)
    # Other tests' Ray is not the cluster that these mean.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield asked
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run the command; return what it said to the user, a sentence a line."""

    def run(*arguments: object) -> list[str]:
        code = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr().err
        assert code == 2, said
        assert "Traceback" not in said
        lines = [line for line in said.splitlines() if not line.startswith("selfplay: warning: ")]
        assert lines
        for line in lines:
            assert line.startswith("selfplay: "), said
        return lines

    return run


def settings(places: dict[str, Path], *more: str) -> list[str]:
    """Overrides of a quickstart that plays with a small model that is there already."""
    overrides = ["model.make=null", "model.path=$causal", "rollout.threads=1", *more]
    return [Template(override).substitute(places) for override in overrides]


# --- the configuration, and what it names ---

BAD = {
    "unknown key": (["rollout.replica=2"], "unknown key rollout.replica; did you mean"),
    "ill-typed key": (["learner.ranks=two"], "learner.ranks must be a valid integer"),
    "no baseline for answers": (["answers=1"], "answers must be greater than or equal to 2, not 1"),
    "no baseline for queries": (["queries=1"], "queries must be greater than or equal to 2, not 1"),
    "greedy role": (["solver.sampling.temperature=0"], "solver.sampling.temperature is 0"),
    "no model": (["model.path=$absent"], "model.path '$absent': no config.json of a model there"),
    "no hub id": (["model.path=nobody/nothing"], "model.path 'nobody/nothing': no config.json"),
    "no chat template": (["model.path=$untold"], "tokenizer of '$untold' has no chat template"),
    "no reward model": ([taste("$absent")], "rewards.parts.taste.model: no model at '$absent'"),
    "a language model as reward": (
        [taste("$causal")],
        "rewards.parts.taste.model: '$causal' is LlamaForCausalLM, not a sequence classifier",
    ),
    "two labels": ([taste("$two")], "rewards.parts.taste.model: '$two' has 2 labels"),
    "reward model without a chat template": (
        [taste("$untold_reward")],
        "tokenizer of '$untold_reward' has no chat template",
    ),
    "no data file": (data("nowhere.jsonl"), "source.dataset.path nowhere.jsonl cannot be read"),
    "empty data file": (data("$empty"), "source.dataset.path $empty holds no rows"),
    "malformed data file": (data("$malformed"), "$malformed line 2 is not JSON"),
    "data without the field": (data("$fieldless"), "$fieldless line 2 has no field 'text'"),
    "no such adapter": (
        [*ON_DATA, "source.dataset={path: nobody/no-data, adapter: 'evaluation.adapters:gsm'}"],
        "source.dataset.adapter 'evaluation.adapters:gsm' cannot be imported",
    ),
    "more GPUs than there are": (
        ["rollout.gpus=1", "rollout.replicas=99", "publish.backend=auto"],
        "the run asks for 99 GPUs (rollout 99) and the cluster has",
    ),
    "no room for the challenger": (
        ["rollout.context=48"],
        "the challenger prompt for the task 'sorting letters' takes",
    ),
    "no room for the solver": (
        ["solver.sampling.max_tokens=505"],
        "solver.sampling.max_tokens 505 leaves no room for a query as long as its template",
    ),
    "no room for the judge": (
        ["rewards.quality.fleet.context=64"],
        "rewards.quality.fleet.context 64 is too small: the rubric and",
    ),
    "no room for the reward model": (
        [taste("$reward", context=16)],
        "rewards.parts.taste.fleet.context 16 is too small: the chat template",
    ),
    "context beyond the model": (
        ["rollout.context=1024"],
        "fleet rollout: context 1024 is more than the model's 512",
    ),
    "no prompt file": (["challenger.prompt=$absent"], "cannot read the prompt file $absent"),
    "no such label": (
        ["gate.safety={model: $two, labels: [arms], fleet: {cpus: 0}}"],
        "gate.safety.labels: '$two' has no label 'arms'; its labels are 'LABEL_0', 'LABEL_1'",
    ),
    "no safety classifier": (
        ["gate.safety={model: $causal, labels: [arms], fleet: {cpus: 0}}"],
        "gate.safety.model: '$causal' is LlamaForCausalLM, not a sequence classifier",
    ),
    "no solver's prompt file": (["solver.prompt=$absent"], "cannot read the prompt file $absent"),
    "no slot in the solver's prompt file": (
        ["solver.prompt=playground/prompts/quality.txt"],
        "the prompt file playground/prompts/quality.txt lacks the slot {{query}}",
    ),
    "no rubric": (["rewards.quality.prompt=$absent"], "cannot read the prompt file $absent"),
    "no such maker": (
        ["model.path=''", "model.make=playground.base_model:bild"],
        "model.make 'playground.base_model:bild' cannot be imported",
    ),
}
FUNCTIONS = ["heldout.problems", "heldout.identity"]
for key in FUNCTIONS:
    for name in ("playground.langage:verify", "playground.language:veryfy"):
        BAD[f"{key}={name}"] = ([f"{key}={name}"], f"{key} '{name}' cannot be imported: ")
for key, said in (
    ("gate.task_verifier", "gate.task_verifier"),
    ("heldout.verifier", "heldout.verifier"),
    ("rewards.parts.0.function", "rewards.parts.solved.function"),
):
    for name in ("playground.langage:verify", "playground.language:veryfy"):
        BAD[f"{key}={name}"] = ([f"{key}={name}"], f"{said} '{name}' cannot be used: ")


@pytest.mark.parametrize(("overrides", "said"), BAD.values(), ids=BAD.keys())
def test_a_mistake_is_a_sentence_before_anything_starts(
    refused, places, nothing_starts, tmp_path, overrides, said
):
    run_dir = tmp_path / "run"
    arguments = settings(places, *overrides, f"run_dir={run_dir}")
    (line,) = refused("train", QUICKSTART, *arguments)
    assert Template(said).substitute(places) in line
    assert nothing_starts == []
    assert not run_dir.exists()  # or the corrected command would find it taken


def test_each_of_several_mistakes_has_its_sentence(refused, places):
    lines = refused("train", QUICKSTART, *settings(places, "answers=1", "xyz=3", "seed=-1"))
    assert len(lines) == 3


def test_plan_refuses_what_train_does(refused, places):
    (line,) = refused("plan", QUICKSTART, *settings(places, taste("$two")))
    assert "has 2 labels" in line


def test_a_hub_data_set_out_of_reach_starts_no_actor(refused, places, tmp_path):
    dataset = data("nobody/no-data")
    (line,) = refused("train", QUICKSTART, *settings(places, *dataset, f"run_dir={tmp_path / 'r'}"))
    assert "source.dataset.path 'nobody/no-data' is no file here, and as a hub data set" in line


def test_the_command_itself_ends_with_2_and_a_sentence(places, tmp_path):
    overrides = settings(places, "heldout.problems=playground.langage:heldout")
    command = [sys.executable, "-m", "cluster", "train", str(QUICKSTART), *overrides]
    done = subprocess.run(
        [*command, f"run_dir={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("selfplay: heldout.problems 'playground.langage:heldout' cannot")
    assert len(done.stderr.splitlines()) == 1


# --- run directories ---


@pytest.fixture
def run_dir(places: dict[str, Path], tmp_path: Path) -> Path:
    """A run that stopped after two iterations; of its checkpoint, what the driver reads."""
    folder, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(places["causal"], model)
    config = load(QUICKSTART, settings(places, f"model.path={model}", f"run_dir={folder}"))
    save_resolved(config, folder)
    identity = initial_model(config).identity
    with CheckpointStore(folder / "checkpoints", keep=2).writing(2) as draft:
        for name in ("hf", "deepspeed"):
            (draft.folder / name).mkdir()
            (draft.folder / name / "weights").write_text("weights")
        shape = {"queries": config.queries, "answers": config.answers, "seed": config.seed}
        shape |= {"staleness": config.staleness, "rewards": ["solved"]}
        draft.state = {"iteration": 2, "version": 2, "model": identity} | shape
    return folder


@pytest.mark.parametrize("command", ["resume", "stop", "report", "export"])
def test_a_directory_without_a_run_is_refused(refused, tmp_path, command):
    more = [tmp_path / "out"] if command == "export" else []
    (line,) = refused(command, tmp_path, *more)
    assert f"{tmp_path} is no run directory" in line


def test_a_directory_of_another_run_or_of_something_else_is_refused(refused, places, run_dir):
    train = ["train", QUICKSTART, *settings(places)]
    (line,) = refused(
        *train, f"run_dir={run_dir}", f"model.path={run_dir.parent / 'model'}", "seed=7"
    )
    assert f"run_dir {run_dir} holds a run with another configuration (seed: 0 → 7)" in line
    (line,) = refused(*train, f"run_dir={run_dir / 'checkpoints'}")
    assert "is not empty and holds no run" in line
    assert not (run_dir / "checkpoints" / "config.yaml").exists()


def cut_short(checkpoints: Path) -> str:
    (checkpoints / "2" / "hf" / "weights").write_text("wei")
    return "weights has 3 bytes where 7 were written"


def foreign(checkpoints: Path) -> str:
    shutil.rmtree(checkpoints / "2")
    (checkpoints / "2").mkdir()
    (checkpoints / "2" / "thesis.tex").write_text("mine")
    return f"{checkpoints / '2'} is not a checkpoint of this program"


def named_wrongly(checkpoints: Path) -> str:
    (checkpoints / "latest").write_text("backup")
    return f"{checkpoints / 'latest'} names the checkpoint 'backup', which is not there"


@pytest.mark.parametrize("command", ["resume", "export"])
@pytest.mark.parametrize("spoil", [cut_short, foreign, named_wrongly])
def test_a_checkpoint_that_is_not_whole_is_refused(refused, run_dir, tmp_path, command, spoil):
    said = spoil(run_dir / "checkpoints")
    before = sorted(run_dir.rglob("*"))
    (line,) = refused(command, run_dir, *([tmp_path / "out"] if command == "export" else []))
    assert said in line
    assert set(before) <= set(run_dir.rglob("*"))
    assert not (tmp_path / "out").exists()


def test_a_run_whose_model_is_another_now_is_refused(refused, places, run_dir, tmp_path):
    shutil.copytree(places["other"], tmp_path / "model", dirs_exist_ok=True)
    (line,) = refused("resume", run_dir)
    assert f"{run_dir} began with another model than {tmp_path / 'model'} is now" in line


def test_a_checkpoint_of_another_batch_shape_is_refused(refused, run_dir):
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("queries: 32", "queries: 16"))
    (line,) = refused("resume", run_dir)
    assert f"checkpoint {run_dir / 'checkpoints' / '2'} was written with queries 32" in line


def test_a_relative_run_directory_in_a_submitted_job_is_refused(refused, monkeypatch):
    monkeypatch.setenv(RAY_JOB_VARIABLE, "{}")
    for command in (["resume", "runs/x"], ["train", QUICKSTART]):
        (line,) = refused(*command)
        assert "is relative, and a submitted Ray job runs in a temporary copy" in line


# --- disks ---


def test_a_run_directory_below_a_file_is_refused(refused, places, tmp_path):
    (tmp_path / "file").write_text("mine")
    run_dir = tmp_path / "file" / "run"
    (line,) = refused("train", QUICKSTART, *settings(places, f"run_dir={run_dir}"))
    assert f"run_dir {run_dir}: cannot write config.yaml: Not a directory" in line
    (line,) = refused("resume", run_dir)
    assert f"{run_dir} is no run directory" in line


def test_a_place_for_an_export_below_a_file_is_refused(refused, run_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    (line,) = refused("export", run_dir, tmp_path / "file" / "out")
    assert f"{tmp_path / 'file' / 'out'}: Not a directory: " in line


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_ends_a_run_in_a_sentence(refused, run_dir, monkeypatch, code):
    make = Path.mkdir

    def mkdir(path: Path, *arguments: object, **options: object) -> None:
        if path.name == "logs":
            raise OSError(code, os.strerror(code), str(path))
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    (line,) = refused("resume", run_dir)
    assert line.startswith(f"selfplay: {run_dir / 'logs'}: {os.strerror(code)}: ")


def test_a_full_disk_is_named_with_the_file_that_did_not_fit(refused, run_dir):
    record = {"iteration": 0, "parts": {}, "rejected": {}, "admitted": 1, "learner": {}}
    record |= {"seconds": {}}
    (run_dir / "metrics.jsonl").write_text(f"{json.dumps(record)}\n")
    # The kernel's own full device: the file opens, and the write fails.
    (run_dir / "report.html").symlink_to("/dev/full")
    (line,) = refused("report", run_dir)
    assert f"{run_dir / 'report.html'}: No space left on device: free some space" in line
