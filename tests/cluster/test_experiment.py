"""Experiments without engines: order, chains, what is not played again, and stages that fail."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster import cli
from cluster.experiment import (
    bases,
    check,
    ended,
    estimate,
    run_experiment,
    seconds_left,
    turns_of,
)
from cluster.experiment_results import write_results
from cluster.faults import RunError
from cluster.rundir import newest_export
from cluster.stage_process import StageProcesses
from configs.errors import UserError
from configs.experiments import ExperimentConfig, load_experiment
from configs.load import load, save_resolved
from learner.checkpoint import CheckpointStore
from tests.conftest import ROOT
from tests.evaluation.synthetic import judge

EXPERIMENTS = ROOT / "configs" / "experiments"
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
MADE = "tests.cluster.test_experiment:make_data"


def make_data(path: Path) -> None:
    path.write_text("made")


def experiment(tmp_path: Path, seeds: Sequence[int] = (0,), **others: object) -> ExperimentConfig:
    def stage(name: str, *settings: str) -> dict:
        return {"name": name, "config": QUICKSTART, "set": list(settings)}

    one, two = stage("one"), stage("two", "queries=16")
    values = {
        "experiment_dir": tmp_path / "runs",
        "seeds": list(seeds),
        "methods": {"base": [], "a": [one], "ab": [one, two], "c": [stage("three", "answers=4")]},
    }
    return ExperimentConfig.model_validate(values | others)


class Player:
    """Stands in for training: leaves a checkpoint, held-out answers and a summary."""

    def __init__(self, failing: Sequence[str] = (), identity: str = "org/base@1") -> None:
        self.failing = failing
        self.identity = identity
        self.played: list[str] = []
        self.models: dict[str, str] = {}

    def __call__(self, name: str, preset: Path, overrides: Sequence[str]) -> int:
        config = load(preset, overrides)
        self.played.append(config.run_dir.name)
        self.models[config.run_dir.name] = config.model.path
        save_resolved(config, config.run_dir)
        if config.run_dir.name in self.failing:
            return 1
        with CheckpointStore(config.run_dir / "checkpoints", 1).writing(3) as draft:
            (draft.folder / "hf").mkdir()
        model = {"path": "org/base", "revision": "1", "identity": self.identity}
        (config.run_dir / "model.json").write_text(json.dumps(model))
        families = {"sort": {"n": 4, "before": 0.25, "after": 0.5}}
        for when, right in (("before", [1, 0, 0, 0]), ("after", [1, 1, 0, 0])):
            path = config.run_dir / f"heldout-{when}.json"
            path.write_text(json.dumps({"answers": [], "right": right, "unverified": 0}))
        summary = {"heldout": {"families": families}, "wall_s": {"setup": 20.0, "train": 40.0}}
        (config.run_dir / "summary.json").write_text(json.dumps(summary))
        return 0


def test_a_later_stage_starts_from_the_export_of_the_one_before_it(tmp_path):
    player = Player()
    assert run_experiment(experiment(tmp_path), player) == []
    assert player.played == ["one", "one+two", "three"]
    assert player.models["one"] == ""
    assert player.models["one+two"] == str(tmp_path / "runs/seed-0/one/checkpoints/3/hf")


def test_what_has_ended_is_not_played_again_and_what_has_not_is(tmp_path):
    run_experiment(experiment(tmp_path), Player(failing=["one+two"]))
    again = Player()
    assert run_experiment(experiment(tmp_path, seeds=[0, 1]), again) == []
    assert again.played == ["one+two", "one", "one+two", "three"]


def test_a_failing_stage_takes_only_those_that_start_from_it(tmp_path, capsys):
    player = Player(failing=["one"])
    failed = run_experiment(experiment(tmp_path), player)
    assert player.played == ["one", "three"]
    assert [" failed: selfplay train ended with exit code 1" in failed[0], len(failed)] == [True, 2]
    assert failed[1].endswith(
        "one+two was skipped: " + str(tmp_path / "runs/seed-0/one has not ended")
    )
    assert "failed: selfplay train" in capsys.readouterr().out
    found = ended(experiment(tmp_path))
    assert {name: list(seeds) for name, seeds in found.items()} == {
        "base": [0], "a": [], "ab": [], "c": [0]
    }  # fmt: skip
    assert bases(experiment(tmp_path)) == {0: tmp_path / "runs/seed-0/three"}


def test_results_stand_where_a_stage_failed(tmp_path):
    config = experiment(tmp_path)
    failed = run_experiment(config, Player(failing=["one"]))
    text = write_results(config, failed)
    written = json.loads((tmp_path / "runs/results.json").read_text())
    assert written["missing"] == failed
    (row,) = written["methods"]["c"]["seeds"]
    assert (row["heldout"], row["win"], row["tie"], row["loss"]) == (0.5, 0.25, 0.75, 0.0)
    assert failed[0] in text
    assert (tmp_path / "runs/results.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_stage_of_other_settings_is_not_taken_for_this_one(tmp_path):
    run_experiment(experiment(tmp_path), Player())
    changed = {"methods": {"a": [{"name": "one", "config": QUICKSTART, "set": ["answers=16"]}]}}
    (failed,) = run_experiment(experiment(tmp_path, **changed), Player())
    assert "played with other settings (answers: 8 → 16; " in failed


def test_a_stage_that_was_stopped_stops_the_experiment(tmp_path):
    with pytest.raises(RunError, match="stopped before its end: the same command continues it"):
        run_experiment(experiment(tmp_path), lambda name, preset, overrides: 0)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"name": "x", "config": "configs/absent.yaml"}, r"absent.yaml: there is no such file"),
        ({"name": "x", "config": QUICKSTART, "set": ["querys=3"]}, "unknown key querys"),
        ({"name": "x", "config": QUICKSTART, "set": ["queries"]}, "write a.b=c"),
    ],
)
def test_a_stage_that_cannot_be_played_is_refused_before_the_first(tmp_path, stage, words):
    good = {"name": "one", "config": QUICKSTART}
    player = Player()
    with pytest.raises(UserError, match=words):
        run_experiment(experiment(tmp_path, methods={"a": [good, stage]}), player)
    assert player.played == []


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_stage_of_the_presets_is_a_valid_configuration(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(turns_of(load_experiment(path)))


def test_data_is_made_where_it_is_not_there(tmp_path):
    there, absent = tmp_path / "there", tmp_path / "absent"
    there.write_text("mine")
    run_experiment(experiment(tmp_path, data={there: MADE, absent: MADE}), Player())
    assert (there.read_text(), absent.read_text()) == ("mine", "made")


def test_a_run_without_a_checkpoint_starts_no_stage(tmp_path):
    save_resolved(load(Path(QUICKSTART), [f"run_dir={tmp_path}"]), tmp_path)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        newest_export(tmp_path)


def test_time_left_is_the_mean_of_what_ended_times_what_has_not(tmp_path):
    dirs = [tmp_path / name for name in "abc"]
    assert seconds_left(dirs, 1) is None
    dirs[0].mkdir()
    (dirs[0] / "summary.json").write_text('{"wall_s": {"setup": 20.0, "train": 100.0}}')
    assert seconds_left(dirs, 1) == 240.0
    assert seconds_left(dirs, 2) == 120.0
    assert estimate(240.0).startswith("about 4 min")


def unmeasured(tmp_path: Path, seeds: Sequence[int] = (0,)) -> ExperimentConfig:
    """An experiment without held-out problems, played."""
    stages = [{"name": n, "config": QUICKSTART, "set": ["heldout=null"]} for n in ("one", "two")]
    stages[1]["set"] = ["heldout=null", "queries=16"]
    methods = {"base": [], "a": stages[:1], "ab": stages}
    config = experiment(tmp_path, seeds, methods=methods)
    run_experiment(config, Player())
    return config


def win(folder: Path, checkpoint: int, wins: int) -> None:
    """Verdicts on four instructions, so many of them wins and one a tie."""
    preferences = [2.0] * wins + [1.5] + [1.0] * (3 - wins)
    rows = [
        {"instruction": f"{i}", "dataset": "koala", "generator_1": "base", "generator_2": "m",
         "annotator": "j", "output_1": "", "output_2": "", "preference": preference}
        for i, preference in enumerate(preferences)
    ]  # fmt: skip
    judge(folder, checkpoint, rows)


def test_without_heldout_problems_the_commands_that_measure_are_shown(tmp_path):
    config = unmeasured(tmp_path, seeds=[0, 1])
    root = tmp_path / "runs"
    text = write_results(config, [])
    base = f"{root}/base/org--base@1/evaluation/alpaca-eval-0"
    lines = [line.strip() for line in text.splitlines() if line.startswith("  selfplay")]
    # Seeds that begin with one model have it judged once, and a chain is compared with its base.
    assert lines == [
        f"selfplay evaluate alpaca-eval org/base@1 --against org/base@1 --out {base}",
        *(
            f"selfplay evaluate alpaca-eval {root}/seed-{seed}/{stage} --against org/base@1"
            for stage in ("one", "one+two")
            for seed in (0, 1)
        ),
    ]


def test_judged_methods_are_a_table_with_the_base_and_what_is_missing(tmp_path):
    config = unmeasured(tmp_path)
    root = tmp_path / "runs"
    win(root / "seed-0" / "one", 3, 3)
    win(root / "base" / "org--base@1", 0, 1)
    text = write_results(config, ["x failed"])
    # One of four won and one tied; the interval is over the instructions.
    assert "| base | 1 | 37.5 |" in text
    assert "| a | 1 | 87.5 |" in text
    command = f"selfplay evaluate alpaca-eval {root}/seed-0/one+two --against org/base@1"
    sentence = f"ab, seed 0, has not been judged: `{command}` with the --judge of the others"
    assert f"- x failed\n- {sentence}\n" in text
    written = json.loads((root / "results.json").read_text())
    assert written["missing"] == ["x failed", sentence]
    (row,) = written["methods"]["a"]["seeds"]
    assert row["families"] == {"koala": 0.875}
    assert row["win_rate_ties_as_losses"] == 0.75
    (one,) = written["tests"]
    assert (one["method"], one["against"], one["seeds"][0]["n"]) == ("a", "base", 4)
    assert (root / "results.png").read_bytes().startswith(b"\x89PNG")
    assert sentence.partition(":")[0] in (root / "report.html").read_text()


def test_a_checkpoint_newer_than_the_judged_one_is_said_with_the_command(tmp_path):
    config = unmeasured(tmp_path)
    root = tmp_path / "runs"
    win(root / "seed-0" / "one", 2, 3)
    win(root / "seed-0" / "one+two", 3, 1)
    text = write_results(config, [])
    assert "- a, seed 0, has been judged at checkpoint 2 and not at its last, 3: `selfplay" in text


@pytest.mark.parametrize("measure", [True, False])
def test_stages_of_a_seed_that_began_with_different_models_are_not_compared(tmp_path, measure):
    heldout = [] if measure else ["heldout=null"]
    methods = {
        name: [{"name": name, "config": QUICKSTART, "set": [*heldout, f"queries={queries}"]}]
        for name, queries in (("a", 8), ("b", 16))
    }
    config = experiment(tmp_path, methods=methods)
    run_experiment(config, Player(failing=["b"]))
    run_experiment(config, Player(identity="org/base@2"))
    with pytest.raises(UserError, match=r"a and .*b began with different models, so seed 0 has no"):
        write_results(config, [])


def test_stages_of_a_seed_that_solved_other_problems_before_are_not_compared(tmp_path):
    config = experiment(tmp_path)
    run_experiment(config, Player())
    path = tmp_path / "runs" / "seed-0" / "three" / "heldout-before.json"
    path.write_text(path.read_text().replace("[1, 0, 0, 0]", "[0, 1, 0, 0]"))
    with pytest.raises(UserError, match="did not solve the same held-out problems before training"):
        write_results(config, [])


def test_an_experiments_folder_has_a_report_wherever_it_was_moved_to(tmp_path, capsys):
    config = experiment(tmp_path, seeds=[0, 1])
    run_experiment(config, Player(failing=["one"]))
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert cli.main(["report", str(tmp_path / "moved")]) == 0
    page = tmp_path / "moved" / "report.html"
    assert capsys.readouterr().out.endswith(f"\n{page}\n")
    for words in ("2 of 6 stages have ended", "not begun", "50.0%", "experiment_dir:"):
        assert words in page.read_text()


def test_the_command_ends_in_exit_code_1_where_a_stage_failed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment(tmp_path).model_dump_json())
    failing = Player(failing=["one"])
    run = run_experiment
    monkeypatch.setattr("cluster.experiment.run_experiment", lambda config: run(config, failing))
    assert cli.main(["experiment", str(path), "--seeds", "3"]) == 1
    out, err = capsys.readouterr()
    assert "| c | 1 | 50.0 |" in out
    assert "seed-3/one failed: selfplay train ended with exit code 1" in err
    assert "Traceback" not in err


def test_a_signal_goes_to_the_stage_which_ends_in_its_own_way(tmp_path):
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    code = f"""
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    pathlib.Path({str(saved)!r}).write_text(str(number))
    sys.exit(0)
signal.signal(signal.SIGINT, stop)
pathlib.Path({str(ready)!r}).touch()
time.sleep(30)
"""

    def interrupt() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    with StageProcesses() as processes:
        assert not processes.asked
        processes.run("one", [sys.executable, "-c", code])
        assert processes.asked
    assert saved.read_text() == str(int(signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stages_exit_code_comes_back_and_its_lines_bear_its_name(capsys):
    with StageProcesses() as processes:
        code = processes.run("one", [sys.executable, "-c", "print(3); raise SystemExit(7)"])
    assert (code, capsys.readouterr().out) == (7, "one | 3\n")


def test_stages_are_played_side_by_side_and_none_before_the_one_it_starts_from(tmp_path):
    player, both = Player(), threading.Barrier(2, timeout=20)

    def play(name: str, preset: Path, overrides: Sequence[str]) -> int:
        if name in ("seed-0/one", "seed-0/three"):
            both.wait()
        return player(name, preset, overrides)

    assert run_experiment(experiment(tmp_path, at_once=2), play) == []
    assert set(player.played[:2]) | {"one+two"} == set(player.played)
    assert player.played.index("one") < player.played.index("one+two")


def test_a_stop_begins_no_other_stage(tmp_path):
    player = Player()

    def play(name: str, preset: Path, overrides: Sequence[str]) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return player(name, preset, overrides)

    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(tmp_path), play)
    assert player.played == ["one"]


def test_a_stage_that_saves_and_ends_since_it_was_asked_to_is_an_interruption(tmp_path):
    def play(name: str, preset: Path, overrides: Sequence[str]) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return 0  # without a summary

    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(tmp_path), play)
    with pytest.raises(RunError, match="was stopped before its end"):
        run_experiment(experiment(tmp_path), lambda *_: 0)
