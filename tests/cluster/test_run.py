"""Whole runs on the real engines: stopped, crashed, resumed, and with an actor killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cluster.audit import check_ledger, counted_groups
from cluster.ledger import CHALLENGER, Ledger
from cluster.record import IterationRecord
from cluster.wiring import Wired, wire
from configs.load import load
from configs.schema import RunConfig
from tests.cluster.whole_run import ANSWERS, ITERATIONS, QUERIES, Command, overrides


def rows(run_dir: Path) -> dict[tuple, tuple]:
    """What a run played and what came of it, by place."""
    table = Ledger(run_dir).read().to_pylist()
    return {
        (row["iteration"], row["group_id"], row["role"], row["seed"]): (
            tuple(row["token_ids"]),
            row["reward"],
            row["advantage"],
        )
        for row in table
    }


def assert_same_games(one: dict[tuple, tuple], other: dict[tuple, tuple]) -> None:
    assert one.keys() == other.keys()
    for place, (token_ids, *figures) in one.items():
        assert token_ids == other[place][0], place
        mine, others = (np.array(f, dtype=float) for f in (figures, other[place][1:]))
        np.testing.assert_allclose(mine, others, atol=1e-6, err_msg=str(place))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts, with one rollout actor."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    train = Command("train", "configs/quickstart.yaml", *overrides(model, run_dir))
    assert train.end() == 0, "".join(train.said)
    return run_dir


# --- one and two rollout actors, one of them killed ---


def played(
    config: RunConfig, model: Path, run_dir: Path, disturb: Callable[[Wired, IterationRecord], bool]
) -> list[int]:
    """Play a run in this process, to its end or until `disturb` says that it is enough.

    Return the restarts of the rollout fleet after each iteration.
    """
    run_dir.mkdir()

    async def play() -> list[int]:
        wired = wire(config, str(model))
        restarts = []
        try:
            await wired.start()
            await wired.policy.publish(0)
            game = wired.game(config, Ledger(run_dir))
            async with contextlib.aclosing(game.play()) as records:
                async for record in records:
                    restarts.append(wired.fleets["rollout"].restarts)
                    if disturb(wired, record):
                        break
        finally:
            await wired.stop()
        return restarts

    return asyncio.run(play())


def kill_soon(wired: Wired) -> None:
    victim = next(iter(wired.fleets["rollout"].serving().values()))
    asyncio.get_running_loop().call_later(0.05, lambda: ray.kill(victim))


def test_two_rollout_actors_play_the_same_games_and_one_may_die(
    ray_session: None, whole: Path, model: Path, tmp_path: Path
):
    run_dir = tmp_path / "two"
    config = load(
        Path("configs/quickstart.yaml"), [*overrides(model, run_dir), "rollout.replicas=2"]
    )

    def kill_one(wired: Wired, record: IterationRecord) -> bool:
        # The next round has begun: calls are in flight on both.
        if record.iteration == 0:
            kill_soon(wired)
        return record.iteration == 3

    restarts = played(config, model, run_dir, kill_one)
    assert restarts[-1] == 1
    alone = {place: row for place, row in rows(whole).items() if place[0] <= 3}
    assert_same_games(alone, rows(run_dir))
    assert check_ledger(run_dir, answers=ANSWERS, staleness=0) == []


def test_ahead_of_the_learner_on_data_and_queries_each_group_is_trained_once(
    ray_session: None, model: Path, tmp_path: Path
):
    data = tmp_path / "rows.jsonl"
    texts = (f"Please sort the letters {a} {b} ." for a in "vdwpt" for b in "kqsxz")
    data.write_text("".join(json.dumps({"query": text}) + "\n" for text in texts))
    run_dir = tmp_path / "run"
    config = load(
        Path("configs/quickstart.yaml"),
        [
            *overrides(model, run_dir),
            *("iterations=8", "staleness=1", "rollout.replicas=2"),
            f"source={{kind: mix, dataset: {{path: {data}}}}}",
        ],
    )
    records: list[IterationRecord] = []

    def kill_one(wired: Wired, record: IterationRecord) -> bool:
        records.append(record)
        if record.iteration == 2:
            kill_soon(wired)
        return False

    restarts = played(config, model, run_dir, kill_one)
    assert restarts[-1] == 1
    assert check_ledger(run_dir, answers=ANSWERS, staleness=1) == []
    assert counted_groups(run_dir, queries=QUERIES) == (0, 0)
    of_data = [row["finish_reason"] == "dataset" for row in queries_of(run_dir)]
    assert any(of_data)
    assert not all(of_data)
    stale = [record for record in records if record.staleness_max == 1]
    assert stale, "nothing was generated ahead"
    weights = [record.learner["importance_weight_mean"] for record in stale]
    assert all(0.5 < weight < 2 for weight in weights)
    assert any(abs(weight - 1) > 1e-4 for weight in weights), "the old policy's are not used"


def queries_of(run_dir: Path) -> list[dict[str, Any]]:
    """The ledger's rows of queries that were trained."""
    table = Ledger(run_dir).read(["role", "finish_reason", "admitted"]).to_pylist()
    return [row for row in table if row["role"] == CHALLENGER and row["admitted"]]


# --- stop, crash and resume, by the command line ---


def test_a_run_leaves_what_the_design_says(whole: Path):
    assert check_ledger(whole, answers=ANSWERS, staleness=0) == []
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["iterations"] == ITERATIONS
    assert summary["tokens"]["trained"] > 0
    # The other tests compare with this run: it must have learnt something that can be lost.
    assert sum(advantage != 0 for *_, advantage in rows(whole).values()) > 100
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(ITERATIONS))
    assert (whole / "checkpoints" / "latest").read_text() == str(ITERATIONS)
    assert (whole / "report.html").is_file()
    assert any((whole / "tensorboard").iterdir())


def test_stopped_by_ctrl_c_and_resumed_equals_uninterrupted(
    whole: Path, model: Path, tmp_path: Path
):
    run_dir = tmp_path / "stopped"
    train = Command("train", "configs/quickstart.yaml", *overrides(model, run_dir))
    train.until(f"2/{ITERATIONS}")
    # Ctrl-C reaches every process of the terminal's foreground group, Ray's too.
    os.killpg(train.process.pid, signal.SIGINT)
    assert train.end() == 0, "".join(train.said)
    assert train.living() == []
    assert not (run_dir / "summary.json").exists()
    resume = Command("resume", str(run_dir))
    assert resume.end() == 0, "".join(resume.said)
    assert_same_games(rows(whole), rows(run_dir))
    assert check_ledger(run_dir, answers=ANSWERS, staleness=0) == []


def test_crashed_and_resumed_plays_the_lost_iterations_again_and_stop_leaves_no_process(
    whole: Path, model: Path, tmp_path: Path
):
    run_dir = tmp_path / "crashed"
    settings = overrides(model, run_dir)
    train = Command("train", "configs/quickstart.yaml", *settings)
    train.until(f"7/{ITERATIONS}")
    train.process.send_signal(signal.SIGKILL)
    train.end()
    again = Command("train", "configs/quickstart.yaml", *settings)
    again.until(f"9/{ITERATIONS}")
    started = time.monotonic()
    stop = subprocess.run([sys.executable, "-m", "cluster", "stop", str(run_dir)], check=False)
    assert stop.returncode == 0
    assert again.end() == 0, "".join(again.said)
    print(f"stopped in {time.monotonic() - started:.1f} s")
    assert again.living() == []
    assert "continuing it" in "".join(again.said)
    assert list((run_dir / "games" / "undone").iterdir())
    done = int((run_dir / "checkpoints" / "latest").read_text())
    assert 9 <= done < ITERATIONS
    assert_same_games(
        {place: row for place, row in rows(whole).items() if place[0] < done}, rows(run_dir)
    )
    changed = Command("train", "configs/quickstart.yaml", *settings, "seed=7")
    assert changed.end() == 2
    assert "holds a run with another configuration (seed: 0 → 7)" in "".join(changed.said)


@pytest.mark.timeout(900)
def test_a_silent_learner_rank_starts_again_from_the_last_checkpoint_by_itself(
    whole: Path, model: Path, tmp_path: Path
):
    run_dir = tmp_path / "lost"
    settings = [*overrides(model, run_dir), "learner.step_deadline_s=25"]
    train = Command("train", "configs/quickstart.yaml", *settings)
    train.until(f"7/{ITERATIONS}")
    (rank,) = train.children("LearnerRank")
    os.kill(rank, signal.SIGSTOP)
    assert train.end() == 0, "".join(train.said)
    assert train.living() == []
    said = "".join(train.said)
    assert "from iteration 4 on" in said
    assert "ranks [0] have not answered" in said
    assert (
        "run=lost actor=learner-0 iteration=3 version=3 DeepSpeed: "
        in (run_dir / "logs/learner-0.log").read_text()
    )
    assert list((run_dir / "games" / "undone").iterdir())
    assert_same_games(rows(whole), rows(run_dir))
    assert check_ledger(run_dir, answers=ANSWERS, staleness=0) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("shape", "was written with queries 4, and this run has 8: put that back"),
        ("truncated", "model.safetensors has 9 bytes where"),
        ("format", "is not a checkpoint of this program"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    whole: Path, tmp_path: Path, spoil: str, said: str
):
    run_dir = tmp_path / "spoilt"
    shutil.copytree(whole, run_dir)
    (run_dir / "summary.json").unlink()
    newest = run_dir / "checkpoints" / str(ITERATIONS)
    if spoil == "shape":
        config = run_dir / "config.yaml"
        config.write_text(config.read_text().replace("\nqueries: 4\n", "\nqueries: 8\n"))
    elif spoil == "truncated":
        os.truncate(newest / "hf" / "model.safetensors", 9)
    else:
        (newest / "state.json").write_text("{}")
    resume = Command("resume", str(run_dir))
    assert resume.end() == 2
    assert said in "".join(resume.said)
    assert "Traceback" not in "".join(resume.said)
    assert_same_games(rows(run_dir), rows(whole))


def test_a_guard_takes_a_collapsing_run_back_and_it_goes_on_with_other_settings(
    model: Path, tmp_path: Path
):
    run_dir = tmp_path / "collapsing"
    guard = (
        "{metric: admitted_share, below: 0.6, patience: 3, action: rollback,"
        " set: [learner.learning_rate=1e-6]}"
    )
    settings = [
        *overrides(model, run_dir),
        # Within a few such steps queries repeat themselves up to their limit of 40 tokens.
        "learner.learning_rate=6e-3",
        "learner.warmup=4",
        # Not so fast that a whole round is turned away before the guard has seen three.
        "challenger.alpha=0.3",
        "challenger.rejected=worst",
        "learner.kl.coefficient=0",
        "checkpoint={every: 1, keep: 8, best: development.solved}",
        "development={problems: 'playground.language:development',"
        " verifier: 'playground.language:verify', n: 20, every: 3}",
        f"guards=[{guard}]",
    ]
    train = Command("train", "configs/quickstart.yaml", *settings)
    assert train.end() == 0, "".join(train.said)
    rollbacks = json.loads((run_dir / "rollbacks.json").read_text())
    # The model that played the bad iteration is not gone back to.
    assert all(back["to"] <= max(back["iteration"] - 4, 0) for back in rollbacks)
    assert all("admitted_share is" in back["reason"] for back in rollbacks)
    to = min(back["to"] for back in rollbacks)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(ITERATIONS))
    rates = [line["learner"]["learning_rate"] for line in lines]
    assert [rate > 1e-5 for rate in rates] == [i < to for i in range(ITERATIONS)]
    assert [line["development"] != {} for line in lines] == [i % 3 == 2 for i in range(ITERATIONS)]
    assert check_ledger(run_dir, answers=ANSWERS, staleness=0) == []
    undone = {path.name.partition(".")[0] for path in (run_dir / "games" / "undone").iterdir()}
    assert len(undone) >= rollbacks[0]["iteration"] - rollbacks[0]["to"]
    best = json.loads((run_dir / "checkpoints" / "best.json").read_text())
    assert best["value"] == max(line["development"].get("solved", 0) for line in lines)
    export = Command("export", "--best", str(run_dir), str(tmp_path / "model"))
    assert export.end() == 0
    assert f"after iteration {best['iteration']}" in "".join(export.said)
