"""A judge's key is in nothing that an evaluation leaves or says, whatever the endpoint does."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from evaluation.alpaca.config import AlpacaEvalConfig
from evaluation.report import write_report
from tests.evaluation.alpaca.contestants import ROWS, contestant, run
from tests.evaluation.alpaca.judge_server import JudgeServer, completion, error
from tests.evaluation.synthetic import make_run

KEY = "sk-planted-0123456789abcdef"


def telling(number: int, prompt: str) -> Any:
    """An endpoint that repeats the key in its errors, as real ones do, and never answers one."""
    if "question 3\n" in prompt:
        return error(400, f"your key {KEY} may not ask this")
    if "question 5\n" in prompt:
        return error(500, f"no answer for {KEY}")
    if number % 5 == 1:
        return error(429, f"rate limit of {KEY}", **{"retry-after": "0"})
    return completion("no verdict") if "question 4\n" in prompt else None


def refusing(number: int, prompt: str) -> Any:
    return error(401, f"Incorrect API key provided: {KEY}")


@pytest.mark.parametrize("script", [telling, refusing])
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_planted_key_is_found_nowhere(tmp_path, monkeypatch, caplog, capfd, place, script):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "key").write_text(KEY)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    named = {
        "environment": {"api_key_env": "JUDGE_KEY"},
        "file": {"api_key_file": tmp_path / "key"},
    }
    run_dir = make_run(tmp_path / "run", 4)
    instructions = tmp_path / "instructions.json"
    instructions.write_text(json.dumps(ROWS))
    said: list[str] = []
    with JudgeServer(script) as server:
        chat = {"model": "judge", "base_url": server.url, "retries": 2, **named[place]}
        config = AlpacaEvalConfig.model_validate({"instructions": instructions, "judge": chat})
        model, base = contestant("mine@4", lambda i: i % 4 != 0), contestant("base", lambda _: True)
        out = run_dir / "evaluations" / "4" / "alpaca-eval"
        with pytest.raises(UserError) as ended:
            run(config, model, base, out, say=said.append)
        assert server.prompts
    write_report(run_dir)
    (tmp_path / "key").unlink()

    shown = capfd.readouterr()
    texts = {
        "said": "\n".join(said),
        "error": f"{ended.value} {ended.value.__cause__!r} {ended.value.__context__!r}",
        "output": shown.out + shown.err,
        "log": caplog.text,
        "configuration": f"{config!r} {config.model_dump()} {config.model_dump_json()}",
    }
    assert [name for name, text in texts.items() if KEY in text] == []
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(out in path.parents for path in written)
    assert any(path.suffix == ".parquet" for path in written), "the ledger"
    assert [path for path in written if KEY.encode() in Path(path).read_bytes()] == []
