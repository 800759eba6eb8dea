"""The training problems: none of them is one to develop on or held out."""

import json
from pathlib import Path

from playground import language, training_problems


def test_the_three_splits_share_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "data" / "problems.jsonl"
    training_problems.write(path)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(rows) == training_problems.COUNT == 2000
    training = {language.identity(row["query"]) for row in rows}
    development = {problem.key for problem in language.development()}
    heldout = {problem.key for problem in language.heldout()}
    assert len(training) == 2000
    assert not training & development
    assert not training & heldout
    assert not development & heldout
    assert {language.verify(row["query"], row["answer"], None) for row in rows} == {1.0}


def test_they_are_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        training_problems.write(tmp_path / name, 60)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
