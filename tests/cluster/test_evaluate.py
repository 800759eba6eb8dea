"""`selfplay evaluate`: what it is given, what it refuses, and what it prints."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from cluster import cli
from cluster.evaluated import find_base, find_evaluated
from cluster.evaluating import evaluate_alpaca
from configs.load import load, save_resolved
from evaluation.benchmark_table import coding_summary, definitions, table
from evaluation.coding import Attempt
from evaluation.coding_tasks import CodingTask
from evaluation.config import BenchmarkConfig, JudgedConfig
from rewards.code_tests import CodeTests, Verdict
from tests.cluster.evaluations import QUICKSTART, roomy_model, run_with_checkpoint
from tests.models import save_causal_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roomy_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return run_with_checkpoint(tmp_path_factory.mktemp("runs") / "x", model)


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence of a command that a user has got wrong."""
    assert cli.main(["evaluate", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("selfplay: ")]
    assert "Traceback" not in captured.err
    return line


# --- the configuration ---


def test_a_run_is_asked_as_it_was_trained(run_dir):
    found = find_evaluated(BenchmarkConfig, str(run_dir), ["sampling.max_tokens=5"])
    assert found.path == str(run_dir / "checkpoints" / "7" / "hf")
    assert (found.name, found.revision) == ("x@7", None)
    assert found.config.system == "Be brief."
    assert found.config.chat_date.isoformat() == "2025-01-02"
    assert found.config.rollout == load(run_dir / "config.yaml").rollout
    assert (found.config.sampling.max_tokens, found.config.sampling.temperature) == (5, 0.0)
    assert found.out("math") == run_dir / "evaluation" / "math-7"


def test_overrides_go_before_a_runs_own_settings(run_dir):
    found = find_evaluated(BenchmarkConfig, str(run_dir), ["system=''", "rollout.context=64"])
    assert (found.config.system, found.config.rollout.context) == ("", 64)
    assert found.config.rollout.max_sequences == 256


def test_the_base_of_a_run_is_the_model_it_began_with(run_dir, model):
    base = find_base(JudgedConfig, run_dir)
    assert base.path == str(model)
    assert base.config.system == "Be brief."
    assert base.name != find_evaluated(JudgedConfig, str(run_dir)).name


@pytest.mark.parametrize("gpu", [False, True])
def test_a_models_engines_follow_from_the_machine_and_its_context(model, monkeypatch, gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    found = find_evaluated(BenchmarkConfig, str(model))
    engines = found.config.rollout
    assert engines.context == 2048
    assert (engines.gpus, engines.dtype, engines.eager) == (
        (1, "bfloat16", False) if gpu else (0, "float32", True)
    )
    assert found.out("math").name == "tiny-math"
    assert found.name.startswith("tiny@")


def test_two_models_in_folders_of_one_name_are_told_apart(model, run_dir, tmp_path):
    other = save_causal_model(tmp_path / model.name, tied=True, seed=1)
    names = {find_evaluated(BenchmarkConfig, str(path)).name for path in (model, other)}
    assert len(names) == 2


def test_two_runs_in_folders_of_one_name_are_told_apart(model, tmp_path):
    """By what answers and engines are kept by; the name is for people."""
    runs = [run_with_checkpoint(tmp_path / f"seed-{n}" / "lsp", model, seed=n + 1) for n in (0, 1)]
    one, other = (find_evaluated(JudgedConfig, str(run)) for run in runs)
    assert one.name == other.name == "lsp@7"
    assert one.identity != other.identity
    assert one.asked != other.asked
    assert one.asked == find_evaluated(JudgedConfig, str(runs[0])).asked
    assert one.asked != find_evaluated(JudgedConfig, str(runs[0]), ["system=x"]).asked
    (tmp_path / "prompt.txt").write_text("Think about {{query}}")
    prompt = f"prompt={tmp_path / 'prompt.txt'}"
    assert one.asked != find_evaluated(JudgedConfig, str(runs[0]), [prompt]).asked


def test_the_model_of_a_hub_id_is_its_commit(tmp_path, model, monkeypatch):
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    shutil.copytree(model, snapshot)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = find_evaluated(BenchmarkConfig, "org/name")
    assert (found.name, found.revision) == ("org/name", "a" * 40)
    assert found.identity == f"org/name@{'a' * 40}"


def test_a_judge_named_by_an_option_is_a_text_and_settings_add_to_it(model):
    values = {"alpaca": {"judge": {"model": "1.0"}}}
    settings = ["alpaca.judge.concurrency=3"]
    found = find_evaluated(JudgedConfig, str(model), settings, values)
    assert found.config.alpaca.judge is not None
    assert (found.config.alpaca.judge.model, found.config.alpaca.judge.concurrency) == ("1.0", 3)
    assert values == {"alpaca": {"judge": {"model": "1.0"}}}


@pytest.mark.parametrize("name", ["answers.json", "answers.jsonl", "answers", "absent.json"])
def test_any_file_can_be_what_a_model_is_compared_with(model, tmp_path, monkeypatch, name):
    if name != "absent.json":  # whose absence is said when it is read
        (tmp_path / name).write_text("[]")
    asked = []

    async def evaluate(config, who, other, folder, **_):
        asked.append(other)
        return {}

    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setattr("cluster.evaluating.evaluate", evaluate)
    monkeypatch.setattr("cluster.evaluating._contestant", lambda engines, one: one)
    monkeypatch.setattr("cluster.evaluating.with_engines", lambda work: asyncio.run(work(None)))
    options = {"judge": "j", "judge_url": None, "reward_judge": None, "out": tmp_path / "o"}
    evaluate_alpaca(str(model), str(tmp_path / name), [], **options, say=print)
    assert asked == [tmp_path / name]


# --- what a user can get wrong ---


def test_bad_input_is_one_sentence(model, run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    empty = tmp_path / "empty"
    save_resolved(load(QUICKSTART, [f"run_dir={empty}"]), empty)
    absent, instructions = tmp_path / "absent", tmp_path / "i.json"
    instructions.write_text('[{"instruction": "Say a.", "dataset": "koala"}]')
    alpaca = ("alpaca-eval", model, f"alpaca.instructions={instructions}", "--out", tmp_path / "o")
    cases = {
        ("math", absent): f"evaluate: no model at '{absent}'",
        ("math", empty): f"{empty} has no checkpoint yet",
        ("math", model, "limits=3"): "override limits=3: unknown key limits; did you mean limit?",
        ("math", model, "limit=0"): "override limit=0: limit must be greater than or equal to 1",
        ("math", model, f"data.gsm8k={absent}"): f"{absent} cannot be read",
        ("math", model, "alpaca.judge.model=x"): "unknown key alpaca",
        ("math", run_dir, "revision=main"): f"revision: {run_dir} is a run",
        (*alpaca, "--judge", "j"): f"name what {model} is compared with",
        (*alpaca, "--against", model): "no judge is named",
        (*alpaca, "--against", model, "--judge", "j", "--reward-judge", model): "two judges",
        (*alpaca, "--against", model, "--reward-judge", model): (
            f"--reward-judge: '{model}' is LlamaForCausalLM, not a sequence classifier"
        ),
        (*alpaca, "--against", model, "--judge", "j"): (
            "alpaca.judge.api_key_env: the environment has no OPENAI_API_KEY"
        ),
        ("alpaca-eval", "--judge", "j"): "name a RUN or a MODEL",
        ("alpaca-eval", "--annotations", absent, "--judge", "j"): "--judge does not go with",
        ("alpaca-eval", "--annotations", absent, model): "does not go with --annotations",
        ("alpaca-eval", "--annotations", absent): f"{absent}: there is no such file",
    }  # fmt: skip
    for arguments, sentence in cases.items():
        found = said(capsys, *arguments)
        assert sentence in found.removeprefix("selfplay: "), (arguments, found)


def test_a_result_is_not_written_over_by_one_of_another_model_or_limit(
    model, tmp_path, capsys, monkeypatch
):
    rows = {"gsm8k": {"question": "1 + 1?", "answer": "#### 2"}}
    rows["math500"] = {"problem": "1 + 1", "answer": "2"}
    for name, row in rows.items():
        (tmp_path / name).write_text(f"{json.dumps(row)}\n" * 3)
    data = [f"data.{name}={tmp_path / name}" for name in rows]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cluster.evaluating.with_engines", lambda _: ([], []))
    same_name = roomy_model(tmp_path / model.name, seed=1)
    assert cli.main(["evaluate", "math", str(model), *data, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    folder = Path("runs/evaluation/tiny-math")
    assert json.loads((folder / "result.json").read_text()) == result
    assert f"{folder} holds another evaluation, with another value of limit: name another" in said(
        capsys, "math", model, *data, "limit=2"
    )
    assert "another value of model" in said(capsys, "math", same_name, *data)
    assert json.loads((folder / "result.json").read_text()) == result
    assert cli.main(["evaluate", "math", str(model), *data, "--json"]) == 0


def test_without_a_sandbox_coding_is_refused(model, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert "install bubblewrap" in said(capsys, "coding", model)


def test_without_the_hub_the_key_of_a_local_file_is_named(model, capsys, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("datasets.load_dataset", offline)
    found = said(capsys, "ifeval", model)
    assert "google/IFEval cannot be had from the hub: no network" in found
    assert "(data.ifeval=FILE)" in found


# --- what is printed ---


def attempt(kind):
    return Attempt(CodingTask("t", "q", CodeTests("", (), ())), "a", "stop", "c", Verdict(kind))


def test_the_table_names_and_defines_each_number():
    coding = coding_summary("mbpp", [attempt(kind) for kind in ("passed", "failed", "timeout")])
    numbers = {"value": 0.25, "ci95": None}
    ifeval = {
        "benchmark": "ifeval", "n": 4, "notes": ["2 prompts left out"],
        "metrics": {"inst_level_loose_acc": numbers},
    }  # fmt: skip
    printed = table(
        {
            "evaluation": "coding",
            "model": "m@1",
            "benchmarks": {"mbpp": coding, "ifeval": ifeval},
            "definitions": definitions([coding, ifeval]),
            "notes": ["only the first 3 problems of each benchmark"],
        }
    ).splitlines()
    assert printed[0] == "m@1, coding"
    assert printed[3].split() == ["mbpp", "pass@1", "3", "33.3", "[6.1,", "79.2]"]
    assert printed[4].split() == ["ifeval", "inst_level_loose_acc", "4", "25.0", "–"]
    assert any(line.startswith("pass@1: the code of the one answer") for line in printed)
    assert printed[-3:] == [
        "mbpp: 1 failed, 1 passed, 1 timeout",
        "ifeval: 2 prompts left out",
        "only the first 3 problems of each benchmark",
    ]


def test_every_metric_of_a_benchmark_has_a_definition():
    with pytest.raises(KeyError):
        definitions([{"metrics": {"unheard_of": {}}}])


def test_options_and_settings_may_be_mixed(capsys, tmp_path, data):
    file = data / "alpaca_eval" / "annotations" / "alpaca_eval_gpt4__alpaca-7b.json"
    local = f"instructions={data / 'alpaca_eval' / 'instructions.json'}"
    for arguments in (
        ["--annotations", str(file), local, "--json"],
        [local, "--json", "--annotations", str(file)],
    ):
        assert cli.main(["evaluate", "alpaca-eval", *arguments]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["n_total"] == 805
        assert set(result["subsets"]) == {
            "selfinstruct", "oasst", "koala", "helpful_base", "vicuna"
        }  # fmt: skip


def test_help_of_every_evaluation_reads_well(capsys):
    for words in ([], ["alpaca-eval"], ["math"], ["coding"], ["ifeval"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", *words, "--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "docs/evaluation.md" in shown
        if words:
            assert "--json" in shown
            assert "RUN|MODEL" in shown
