"""`selfplay evaluate` on real engines, with a real OpenAI-compatible server as the judge."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.local_cluster import free_ports
from tests.cluster.evaluations import ROOT, roomy_model, run_with_checkpoint
from tests.evaluation.alpaca.judge_server import JudgeServer, Says, completion, error


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roomy_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return run_with_checkpoint(tmp_path_factory.mktemp("runs") / "x", model)


def selfplay(*arguments: object, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster", "evaluate", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout
    )


def succeeded(*arguments: object) -> dict:
    """The one JSON object on standard output."""
    done = selfplay(*arguments, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def answers(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


FEW = "sampling.max_tokens=6"
LEVELS = ("prompt", "inst")
"""Of IFEval's metrics: whole prompts, and single instructions."""


def test_math_of_a_run(run_dir, data):
    pytest.importorskip("lm_eval", reason="needs lm_eval: make setup installs it")
    result = succeeded(
        "math", run_dir, f"data.gsm8k={data / 'gsm8k_test.jsonl'}", "limit=3",
        f"data.math500={data / 'math500_test.jsonl'}", "rollout.context=2048", FEW,
    )  # fmt: skip
    assert result["model"] == "x@7"
    assert set(result["benchmarks"]) == {"gsm8k", "math500"}
    assert result["notes"] == ["only the first 3 problems of each benchmark"]
    out = run_dir / "evaluation" / "math-7"
    assert json.loads((out / "result.json").read_text()) == result
    rows = answers(out)
    assert [row["benchmark"] for row in rows] == ["gsm8k"] * 3 + ["math500"] * 3
    for name, summary in result["benchmarks"].items():
        mine = [row["verdict"] for row in rows if row["benchmark"] == name]
        for metric, numbers in summary["metrics"].items():
            assert numbers["value"] == sum(verdict[metric] for verdict in mine) / 3


def test_coding_of_a_model(model, data, tmp_path, debian_program):
    debian_program("bwrap", "bubblewrap")
    done = selfplay(
        "coding", model, "--out", tmp_path, f"data.humaneval={data / 'HumanEval.jsonl.gz'}",
        f"data.mbpp={data / 'mbpp.jsonl'}", "limit=2", FEW,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "humaneval  pass@1  2       0.0  [0.0, 65.8]" in done.stdout
    rows = answers(tmp_path)
    assert [row["task"] for row in rows] == ["HumanEval/0", "HumanEval/1", "MBPP/11", "MBPP/12"]
    assert {row["verdict"] for row in rows} <= {"failed", "crashed"}
    assert all(row["answer"] for row in rows)


def test_ifeval_of_a_run(run_dir, data):
    pytest.importorskip("lm_eval", reason="needs lm_eval: make setup installs it")
    result = succeeded(
        "ifeval", run_dir, f"data.ifeval={data / 'ifeval_input_data.jsonl'}", "limit=2",
        "rollout.context=1024", FEW,
    )  # fmt: skip
    assert result["model"] == "x@7"
    assert result["notes"] == ["only the first 2 problems of each benchmark"]
    summary = result["benchmarks"]["ifeval"]
    assert (summary["n"], summary["n_no_room"]) == (2, 0)
    rows = answers(run_dir / "evaluation" / "ifeval-7")
    assert [row["benchmark"] for row in rows] == ["ifeval"] * 2
    for how in ("strict", "loose"):
        whole, single = (summary["metrics"][f"{level}_level_{how}_acc"] for level in LEVELS)
        prompts = [row["verdict"][f"prompt_level_{how}_acc"] for row in rows]
        instructions = [row["verdict"][f"inst_level_{how}_acc"] for row in rows]
        # The first prompt has three instructions, of which six tokens cannot be 300 words.
        assert [len(each) for each in instructions] == [3, 1]
        assert prompts == [all(each) for each in instructions]
        assert not prompts[0]
        assert whole["value"] == sum(prompts) / 2
        assert single["value"] == sum(map(sum, instructions)) / 4
        assert single["ci95"] is None


@pytest.fixture(scope="module")
def judge_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own OpenAI-compatible server with the random model."""
    (port,) = free_ports(1)
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8",
        "--kv-cache-memory-bytes", str(64 * 2**20),
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    log = tmp_path_factory.mktemp("judge") / "log"
    with log.open("wb") as file:
        # A session of its own: the server has children, and all of them are to end.
        server = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    try:
        _await_server(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _await_server(server: subprocess.Popen, url: str, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no server after two minutes: {log.read_text()[-3000:]}")


@pytest.fixture
def instructions(data: Path, tmp_path: Path) -> Path:
    """The shortest instruction of each subset."""
    rows = json.loads((data / "alpaca_eval" / "instructions.json").read_text())
    shortest: dict[str, dict] = {}
    for row in sorted(rows, key=lambda row: len(row["instruction"])):
        shortest.setdefault(row["dataset"], row)
    path = tmp_path / "instructions.json"
    path.write_text(json.dumps(list(shortest.values())))
    return path


def alpaca(run_dir: Path, out: Path, instructions: Path) -> list[object]:
    return [
        "alpaca-eval", run_dir, "--out", out, f"alpaca.instructions={instructions}",
        "alpaca.answers.max_tokens=6", "rollout.context=1024",
    ]  # fmt: skip


VERDICTS = [f"<verdict>{word}</verdict>" for word in ("1", "2", "tie")]


def passed_on(url: str, body: dict) -> Says:
    """What the real judge says to a request."""
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return Says(body=json.load(reply))


@contextlib.contextmanager
def faulty(url: str, faults: dict[int, Says]) -> Iterator[JudgeServer]:
    """In front of the judge: says what `faults` has for a request by number, else passes it on."""
    server = JudgeServer(
        lambda number, _: faults.get(number) or passed_on(url, server.bodies[number])
    )
    with server:
        yield server


def test_a_served_judge_and_continuation(run_dir, instructions, judge_url, tmp_path):
    out = tmp_path / "out"
    arguments = [
        *alpaca(run_dir, out, instructions),
        *("--judge", "judge", "alpaca.judge.api_key_env=null", "alpaca.judge.max_tokens=40"),
    ]
    # A random model writes no verdict; nothing is guessed, and what it wrote is kept.
    first = selfplay(*arguments, "--judge-url", judge_url, "--json")
    assert first.returncode == 2, first.stderr[-3000:]
    assert first.stdout == ""
    assert "none of the judge's 5 replies is a verdict" in first.stderr
    assert "5 instructions" in first.stderr
    for name in ("model_outputs.json", "reference_outputs.json"):
        rows = json.loads((out / name).read_text())
        assert [set(row) >= {"instruction", "output", "generator"} for row in rows] == [True] * 5
    replies = (out / "replies.jsonl").read_bytes()
    # Held to the three verdicts it gives one each time, through a network with every fault.
    arguments.append(f"alpaca.judge.extra_body={{structured_outputs: {{choice: {VERDICTS}}}}}")
    faults = {
        0: error(429, "slow down", retry_after="1"),
        1: Says(delay_s=40, body={}),  # longer than timeout_s
        2: completion("Both are fine."),
    }
    with faulty(judge_url, faults) as proxy:
        arguments += ["--judge-url", proxy.url, "alpaca.judge.timeout_s=30"]
        second = selfplay(*arguments, "--json")
        assert second.returncode == 0, second.stderr[-3000:]
        assert "its answers are in" in second.stderr
        result = json.loads(second.stdout)
        assert (result["n_total"], result["n_dropped"], result["dropped"]) == (4, 1, {"missing": 1})
        judging = result["judging"]
        assert (judging["n_judged_now"], judging["n_unparsable"]) == (5, 1)
        assert judging["unparsable_examples"] == ["Both are fine."]
        # 5 pairs, and once more those that met the 429 and the stall.
        assert judging["n_attempts"] == len(proxy.prompts) == 7
        rows = json.loads((out / "annotations.json").read_text())
        assert {row["raw_completion"] for row in rows} <= {*VERDICTS, "Both are fine."}
        paid = (out / "replies.jsonl").read_bytes()
        assert paid.startswith(replies)
        # The same once more asks nobody.
        again = selfplay(*arguments, "--json")
        assert again.returncode == 0, again.stderr[-3000:]
        assert json.loads(again.stdout)["win_rate"] == result["win_rate"]
        assert len(proxy.prompts) == 7
    assert (out / "replies.jsonl").read_bytes() == paid


def test_a_reward_model_judges(run_dir, instructions, reward_model, tmp_path):
    out = tmp_path / "out"
    result = succeeded(*alpaca(run_dir, out, instructions), "--reward-judge", reward_model)
    assert (result["n_total"], result["n_dropped"]) == (5, 0)
    assert result["model"] == "x@7"
    assert result["judge"] == str(reward_model)
    rows = json.loads((out / "annotations.json").read_text())
    assert len({tuple(row["scores"]) for row in rows if row["scores"]}) > 1
    assert (out / "chart.png").stat().st_size > 0


def test_an_interrupted_evaluation_leaves_no_process(run_dir, instructions, tmp_path):
    arguments = alpaca(run_dir, tmp_path / "out", instructions)
    command = [sys.executable, "-m", "cluster", "evaluate", *map(str, arguments)]
    command += ["--judge", "j", "alpaca.judge.api_key_env=null"]
    mark = str(uuid.uuid4())
    started = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"SELFPLAY_TEST": mark},
    )  # fmt: skip
    assert started.stderr is not None
    for line in started.stderr:
        if "answers 5 instructions" in line:
            break
    time.sleep(8)  # in the middle of starting the engine
    assert len(processes(mark)) > 1
    started.send_signal(signal.SIGINT)
    _, rest = started.communicate(timeout=60)
    assert started.returncode == 130, rest
    assert "selfplay: interrupted" in rest
    assert "Traceback" not in rest
    for _ in range(50):
        if not processes(mark):
            break
        time.sleep(0.2)
    assert processes(mark) == []


def processes(mark: str) -> list[str]:
    """The processes with this mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found
