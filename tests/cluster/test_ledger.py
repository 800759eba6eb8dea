"""The ledger: its columns, its atomic files, and an audit that sees each kind of fault."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.records import Completion, Group, Query, Scores
from cluster.audit import check_ledger, counted_groups
from cluster.ledger import SCHEMA, Ledger
from configs.errors import UserError
from tests.cluster.fakes import Gate, Outcome, World, make_config, make_game, outcome_of, play


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of four iterations with rejected and dropped queries."""
    return played(tmp_path)


def played(folder: Path, **config: object) -> Path:
    world = World(make_config(**config), same_text={"000001-0001-000", "000001-0003-000"})
    world.flawed = {"000002-0000-000"}
    gate = Gate(bad={"000000-0000-000"})
    asyncio.run(play(make_game(world, gate=gate, ledger=Ledger(folder))))
    return folder


def audit(run_dir: Path, staleness: int = 0, answers: int = 2) -> list[str]:
    return check_ledger(run_dir, answers=answers, staleness=staleness)


def test_a_row_per_query_and_per_answer_with_the_columns_of_the_design(run_dir):
    table = Ledger(run_dir).read()
    assert table.schema == SCHEMA
    rows = table.to_pylist()
    queries = [row for row in rows if row["role"] == "challenger"]
    answers = [row for row in rows if row["role"] == "solver"]
    assert len(answers) == 4 * 4 * 2
    assert len(queries) == 4 * 4 + 2  # two were rejected
    query = next(row for row in queries if row["group_id"] == "000003-0002-000")
    of_query = [row for row in answers if row["group_id"] == "000003-0002-000"]
    assert query["text"] == bytes(query["token_ids"]).decode()
    assert query["reward"] == pytest.approx(-np.mean([row["reward"] for row in of_query]))
    assert query["quality"] == pytest.approx(np.mean([row["quality"] for row in of_query]))
    for row in of_query:
        assert row["reward"] == dict(row["reward_parts"])["solved"] + row["quality"]
        assert row["verdict_text"] == "verdict"
        assert row["logprobs"] is None
        assert row["seed"] > 0
    assert sum(row["advantage"] for row in of_query) == pytest.approx(0)


def test_rejected_queries_have_a_reason_and_no_advantage(run_dir):
    rows = [row for row in Ledger(run_dir).read().to_pylist() if not row["admitted"]]
    assert [(row["group_id"], row["reject_reason"]) for row in rows] == [
        ("000000-0000-000", "task_unreadable"),
        ("000001-0003-000", "duplicate"),
    ]
    assert all(row["advantage"] is None and row["reward"] is None for row in rows)


def test_worst_queries_are_trained_without_answers(tmp_path):
    run_dir = played(tmp_path, challenger={"rejected": "worst"})
    rows = [row for row in Ledger(run_dir).read().to_pylist() if not row["admitted"]]
    assert len(rows) == 2
    assert all(row["advantage"] is not None for row in rows)
    assert audit(run_dir) == []


def test_a_data_set_query_has_no_tokens_and_no_advantage(tmp_path):
    query = Query("000000-0000-000", "2 + 2", reference="4")
    answers = tuple(
        Completion(np.array([1]), np.array([7 + j]), "4", "stop", 0, 0, j, np.array([-0.5]))
        for j in range(2)
    )
    groups = [Group(query, answers, Scores({"solved": np.array([1.0, 0.0])}))]
    Ledger(tmp_path).write(0, groups, [], outcome_of(groups))
    row, answer, _ = Ledger(tmp_path).read().to_pylist()
    assert (row["policy_version_min"], row["token_ids"], row["advantage"]) == (-1, [], None)
    assert row["reward"] is None
    assert answer["logprobs"] == [-0.5]
    assert answer["quality"] is None
    assert audit(tmp_path) == []


def test_a_sound_ledger_passes_the_audit(run_dir, tmp_path_factory):
    assert audit(run_dir) == []
    ahead = played(tmp_path_factory.mktemp("ahead"), staleness=2)
    assert audit(ahead, staleness=2) == []
    assert any("written by versions" in said for said in audit(ahead, staleness=0))


def change(run_dir: Path, iteration: int, row: int, **fields: object) -> None:
    path = Ledger(run_dir).files()[iteration]
    rows = pq.read_table(path).to_pylist()
    rows[row] |= fields
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


@pytest.mark.parametrize(
    ("row", "fields", "said"),
    [
        (1, {"advantage": 3.0}, "advantages of the answers of 000003-0000-000"),
        (0, {"advantage": 3.0}, "advantages of the queries"),
        (1, {"advantage": None}, "advantages of the answers"),
        (1, {"policy_version_min": 2}, "versions 2 to 3"),
        (1, {"policy_version_max": 4}, "versions 3 to 4"),
        (1, {"group_id": "000003-0001-000"}, "has 3 answers, not 2"),
        (0, {"group_id": "000002-0001-000"}, "query 000002-0001-000 stands 2 times"),
        (0, {"admitted": False}, "is admitted False with reason None"),
        (1, {"logprobs": [0.5]}, "1 logprobs"),
        (0, {"reward": None}, "an advantage and no reward"),
    ],
)
def test_the_audit_sees_each_fault(run_dir, row, fields, said):
    change(run_dir, 3, row, **fields)
    assert any(said in violation for violation in audit(run_dir)), audit(run_dir)


def test_the_audit_sees_a_lost_and_a_doubled_iteration(run_dir):
    first, second, *_ = Ledger(run_dir).files()
    n = make_config().queries
    assert counted_groups(run_dir, queries=n) == (0, 0)
    text = second.read_bytes()
    second.unlink()
    assert counted_groups(run_dir, queries=n) == (n, 0)
    assert any("iterations are not 0 to 2" in said for said in audit(run_dir))
    second.write_bytes(text)
    (first.parent / "000004.parquet").write_bytes(text)
    assert counted_groups(run_dir, queries=n) == (0, n)
    assert any("stands 2 times" in said for said in audit(run_dir))


def test_what_a_crash_made_void_moves_aside_as_often_as_it_happens(run_dir):
    ledger = Ledger(run_dir)
    whole = ledger.read()
    assert ledger.undo_from(2) == [2, 3]
    assert [path.name for path in ledger.files()] == ["000000.parquet", "000001.parquet"]
    assert audit(run_dir) == []
    undone = run_dir / "games" / "undone"
    for path in list(undone.iterdir()):
        (run_dir / "games" / f"{path.stem.split('-')[0]}.parquet").write_bytes(path.read_bytes())
    assert ledger.read() == whole
    ledger.undo_from(2)
    assert sorted(path.name for path in undone.iterdir()) == [
        "000002-0.parquet",
        "000002-1.parquet",
        "000003-0.parquet",
        "000003-1.parquet",
    ]
    assert ledger.undo_from(2) == []


def test_a_crash_while_writing_leaves_no_half_file(run_dir, monkeypatch):
    groups = [Group(Query("000004-0000-000", "q"), (), Scores({}), "empty")]
    before = Ledger(run_dir).files()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"000004\.parquet cannot be written.*No space left"):
        Ledger(run_dir).write(4, groups, [], Outcome([np.zeros(0)], np.array([0.0])))
    assert Ledger(run_dir).files() == before


def test_an_empty_ledger_reads_as_no_rows(tmp_path):
    assert Ledger(tmp_path).read().num_rows == 0
    assert Ledger(tmp_path).undo_from(0) == []


def test_a_run_directory_that_is_gone_is_not_made_anew(tmp_path):
    groups = [Group(Query("000000-0000-000", "q"), (), Scores({}), "empty")]
    with pytest.raises(UserError, match=r"000000\.parquet cannot be written.*No such file"):
        Ledger(tmp_path / "gone").write(0, groups, [], Outcome([np.zeros(0)], np.array([0.0])))
    assert not (tmp_path / "gone").exists()


def test_the_audit_sees_a_group_that_two_iterations_trained(run_dir):
    n = make_config().queries
    change(run_dir, 3, 0, group_id="000002-0001-000")
    assert counted_groups(run_dir, queries=n) == (0, 1)
