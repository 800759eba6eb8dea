"""The judge against a server that fails in every way; nothing is paid twice, nothing guessed."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from configs.errors import UserError
from evaluation.alpaca.instructions import Instruction
from evaluation.alpaca.outputs import Pair
from evaluation.alpaca.pairwise import is_switched
from tests.evaluation.alpaca.judge_server import JudgeServer, Says, completion, error
from tests.evaluation.alpaca.judging import EXPECTED, PAIRS, judge, preferences

EMPTY = error(429, "You exceeded your current quota, see your plan and billing.",
              "insufficient_quota")  # fmt: skip


def test_verdicts_come_back_in_order_with_the_switch_undone(tmp_path):
    switched = [is_switched(pair.instruction.text) for pair in PAIRS]
    assert {True, False} == set(switched), "both orders are tested"
    with JudgeServer() as server:
        judged = judge(server.url, tmp_path / "replies.jsonl")
    assert preferences(judged) == EXPECTED
    assert judged.unfinished is None
    assert [row["shown_switched"] for row in judged.rows] == switched
    assert judged.rows[0] | {
        "instruction": "question 0", "dataset": "koala", "generator_1": "base",
        "generator_2": "mine", "annotator": "judge", "output_1": "a good answer to 0",
        "output_2": "a bad answer to 0",
    } == judged.rows[0]  # fmt: skip
    assert server.most_at_once <= 3
    assert len(server.prompts) == 12
    assert set(server.keys) == {"Bearer sk-very-secret"}


def test_at_most_so_many_at_once(tmp_path):
    with JudgeServer(lambda n, p: Says(**{**vars(completion("?")), "delay_s": 0.1})) as server:
        judge(server.url, tmp_path / "replies.jsonl", concurrency=4)
    assert server.most_at_once == 4


def test_rate_limits_errors_and_timeouts_are_tried_again(tmp_path):
    faults = {
        0: error(429, "slow down", retry_after="1.2"),
        1: error(500, "oops"),
        2: error(503, "overloaded"),
        3: Says(delay_s=1.5, body={}),  # longer than timeout_s
    }
    with JudgeServer(lambda number, prompt: faults.get(number)) as server:
        judged = judge(server.url, tmp_path / "replies.jsonl", timeout_s=0.7)
    assert preferences(judged) == EXPECTED
    assert judged.account["n_attempts"] == len(server.prompts) == 12 + len(faults)
    again = [i for i, prompt in enumerate(server.prompts) if prompt == server.prompts[0]]
    waited = server.times[again[1]] - server.times[0]
    assert waited >= 1.2, "Retry-After was not kept"


def test_nonsense_is_counted_never_guessed_and_not_paid_again(tmp_path):
    nonsense = ["", "Both are fine.", "<verdict>1</verdict><verdict>2</verdict>", "2"]
    script = lambda n, prompt: completion(nonsense[n]) if n < len(nonsense) else None  # noqa: E731
    with JudgeServer(script) as server:
        first = judge(server.url, tmp_path / "replies.jsonl", concurrency=1)
        second = judge(server.url, tmp_path / "replies.jsonl", concurrency=1)
    assert preferences(first) == [None] * 4 + EXPECTED[4:]
    assert first.account["n_unparsable"] == 4
    assert "Both are fine." in first.account["unparsable_examples"]
    assert [row["raw_completion"] for row in first.rows[:4]] == nonsense
    assert len(server.prompts) == 12
    assert second.rows == first.rows
    assert second.account["n_judged_before"] == 12
    assert second.account["n_judged_now"] == 0


@pytest.mark.parametrize(
    "refusal",
    [EMPTY, error(402, "Insufficient Balance"), error(429, "insufficient credits, top up"),
     error(403, "Key limit exceeded (total limit)")],
    ids=["insufficient_quota", "402", "429 in words", "403 in words"],
)  # fmt: skip
def test_out_of_money_in_the_middle_keeps_what_was_paid(tmp_path, refusal):
    cache = tmp_path / "replies.jsonl"
    with JudgeServer(lambda number, prompt: refusal if number >= 5 else None) as server:
        started = time.monotonic()
        first = judge(server.url, cache, retries=8)
        assert time.monotonic() - started < 3, "an empty account was asked again and again"
        assert len(first.rows) == 5
        assert len(server.prompts) <= 5 + 3, "requests were sent after the first refusal"
        assert "no money left" in first.unfinished
        assert "no verdict on 7 of 12 pairs" in first.unfinished
        assert "the same command continues" in first.unfinished
        server.script = lambda number, prompt: None
        second = judge(server.url, cache)
        third = judge(server.url, cache)
    assert preferences(second) == EXPECTED
    assert second.unfinished is None
    assert (second.account["n_judged_before"], second.account["n_judged_now"]) == (5, 7)
    assert third.rows == second.rows
    assert Counter(server.paid) == dict.fromkeys(set(server.paid), 1), "paid twice"
    assert len(server.paid) == 12


def test_an_endpoint_that_goes_away_and_comes_back(tmp_path):
    cache = tmp_path / "replies.jsonl"
    with JudgeServer() as server:
        judge(server.url, cache, pairs=PAIRS[:4])
        port = server.port
    away = judge(f"http://127.0.0.1:{port}/v1", cache, retries=1)
    assert len(away.rows) == 4
    assert "the endpoint does not answer" in away.unfinished
    with JudgeServer(port=port) as server:
        back = judge(server.url, cache)
    assert preferences(back) == EXPECTED
    assert len(server.prompts) == 8


def test_requests_without_an_answer_here_and_there_do_not_stop_the_others(tmp_path):
    poisoned = tuple(f"question {i}\n" for i in (1, 4, 7, 10))

    def script(number, prompt):
        return error(500, "oops") if any(text in prompt for text in poisoned) else None

    with JudgeServer(script) as server:
        judged = judge(server.url, tmp_path / "replies.jsonl", retries=0, concurrency=1)
    assert len(judged.rows) == 8
    assert "no verdict on 4 of 12 pairs: 4 requests failed (500: oops)" in judged.unfinished


def test_a_deadline_over_all_attempts(tmp_path):
    with JudgeServer(lambda n, prompt: Says(delay_s=1.0, body={})) as server:
        started = time.monotonic()
        judged = judge(server.url, tmp_path / "r.jsonl", pairs=PAIRS[:1], timeout_s=0.3,
                       retries=50, deadline_s=1.0)  # fmt: skip
        assert time.monotonic() - started < 3
    assert "within the deadline of 1 s" in judged.unfinished


def test_what_is_under_way_when_it_stops_is_waited_for(tmp_path):
    """The slow one may have been paid; it is not thrown away because another was refused."""

    def script(number, prompt):
        if "question 0\n" in prompt:
            return Says(**{**vars(completion("<verdict>tie</verdict>")), "delay_s": 0.8})
        return EMPTY

    with JudgeServer(script) as server:
        judged = judge(server.url, tmp_path / "replies.jsonl")
    assert preferences(judged) == [1.5]
    assert "no money left" in judged.unfinished


@pytest.mark.parametrize(
    ("status", "said", "most"),
    [
        (401, "does not accept the key", 3),
        (403, "does not accept the key", 5 + 3),
        (404, "no model 'judge' there", 3),
    ],
)
def test_hopeless_from_the_start(tmp_path, status, said, most):
    says = error(status, "wrong: sk-very-secret or model")
    with JudgeServer(lambda number, prompt: says) as server:
        judged = judge(server.url, tmp_path / "replies.jsonl")
    assert said in judged.unfinished
    assert len(server.prompts) <= most
    assert judged.rows == []
    assert judged.account["n_refused"] == 0
    kept = json.dumps(judged.account) + judged.unfinished
    kept += "".join(path.read_text() for path in tmp_path.iterdir())
    assert "secret" not in kept, "the key was written down"


def test_a_judge_that_has_moved_is_not_asked_again(tmp_path):
    cache = tmp_path / "replies.jsonl"
    with JudgeServer() as here, JudgeServer() as there:
        assert here.url != there.url
        first = judge(here.url, cache, pairs=PAIRS[:8])
        second = judge(there.url, cache)
    assert len(there.prompts) == 4
    assert second.account["n_judged_before"] == 8
    assert second.rows[:8] == first.rows
    assert preferences(second) == EXPECTED


@pytest.mark.parametrize(
    "says",
    [
        Says(body={"error": {"message": "provider down"}}),
        Says(body=[]),
        Says(raw=b"<html>gateway</html>", headers={"content-type": "text/html"}),
        Says(raw=b'{"choices": [', body=None),
    ],
    ids=["an error with status 200", "a list", "html", "half of it"],
)
def test_what_is_no_completion_is_no_reply(tmp_path, says):
    with JudgeServer(lambda number, prompt: says) as server:
        judged = judge(server.url, tmp_path / "replies.jsonl", retries=0, concurrency=1)
    assert judged.rows == []
    assert "does not answer" in judged.unfinished
    assert (tmp_path / "replies.jsonl").read_text() == ""


def test_identical_outputs_are_a_draw_and_not_sent(tmp_path):
    same = Pair(Instruction("question s", "oasst"), "the same", "the same")
    with JudgeServer() as server:
        judged = judge(server.url, tmp_path / "replies.jsonl", pairs=[same, PAIRS[0]])
        only = judge(f"{server.url}", tmp_path / "other.jsonl", pairs=[same])
    assert preferences(judged) == [1.5, 1.0]
    assert preferences(only) == [1.5]
    assert len(server.prompts) == 1
    assert judged.account["n_identical"] == 1


def test_probabilities_of_the_labels(tmp_path):
    """The judge leans to the second answer shown, in whatever order it was shown."""
    tops = [("M", math.log(0.8)), ("m", math.log(0.2))]
    script = lambda n, p: completion("M", tops if n else [("The", -0.1)])  # noqa: E731
    with JudgeServer(script) as server:
        judged = judge(server.url, tmp_path / "r.jsonl", verdict="logprobs", concurrency=1)
    switched = [is_switched(pair.instruction.text) for pair in PAIRS]
    assert preferences(judged)[0] is None, "no label among the likely tokens is no verdict"
    assert preferences(judged)[1:] == pytest.approx([1.2 if s else 1.8 for s in switched[1:]])
    assert server.bodies[0]["logprobs"] is True
    assert server.bodies[0]["max_tokens"] == 1


def test_the_estimate_comes_before_the_first_request(tmp_path):
    lines = []
    with JudgeServer() as server:
        say = lambda line: lines.append((len(server.prompts), line))  # noqa: E731
        price = {"prompt": 2.5, "completion": 10}
        first = judge(server.url, tmp_path / "r.jsonl", say=say, price=price, pairs=PAIRS[:4])
        again = judge(server.url, tmp_path / "r.jsonl", say=say, price=price)
        sent, line = lines[0]
        assert sent == 0
        assert line.startswith("4 pairs to judge, 0 judged before, 0 identical")
        tokens = sum(len(prompt.encode()) / 4 for prompt in server.prompts[:4])
        said = int(line.split("about ")[1].split(" ")[0].replace(",", ""))
        assert said == pytest.approx(tokens, rel=0.05)
        cost = (2.5 * said + 10 * 4 * 400) / 1e6
        assert f"at most {cost:.2f}" in line
        assert any("8 pairs to judge, 4 judged before" in line for _, line in lines)
        spent = first.account["spent_now"]
        assert spent == {
            "prompt_tokens": 400, "completion_tokens": 40, "cost": pytest.approx(0.0014),
        }  # fmt: skip
        assert again.account["spent_now"]["prompt_tokens"] == 800
        assert first.rows[0]["price_per_example"] == pytest.approx(0.00035)
        with pytest.raises(UserError, match=r"max_cost 0\.001 is less than the estimate"):
            judge(server.url, tmp_path / "new.jsonl", price=price, max_cost=0.001)
        assert len(server.prompts) == 12


def test_a_tokenizer_counts_exactly(tmp_path, tiny_model):
    from transformers import AutoTokenizer

    path, lines = str(tiny_model(False)), []
    with JudgeServer() as server:
        judge(server.url, tmp_path / "r.jsonl", say=lines.append, tokenizer=path)
    count = AutoTokenizer.from_pretrained(path)
    tokens = sum(len(count.encode(p, add_special_tokens=False)) + 10 for p in server.prompts)
    assert f"about {tokens:,} tokens to send (by {path})" in lines[0]


def test_another_request_is_another_reply(tmp_path):
    """Model, settings and texts are part of what was paid for; the number of workers is not."""
    cache = tmp_path / "replies.jsonl"
    with JudgeServer() as server:
        for settings in ({}, {"concurrency": 1}, {"temperature": 0.5}, {"model": "other"},
                         {"extra_body": {"seed": 1}}, {}):  # fmt: skip
            judge(server.url, cache, pairs=PAIRS[:2], **settings)
    assert len(server.prompts) == 2 * 4


KILLED = """
import asyncio, sys
from pathlib import Path
from evaluation.alpaca.config import ChatJudgeConfig
from evaluation.alpaca.judge import judge_pairs
from tests.evaluation.alpaca.judging import NAMES, PAIRS

config = ChatJudgeConfig(model="judge", base_url=sys.argv[1], api_key_env="JUDGE_KEY",
                         concurrency=2, timeout_s=60)
asyncio.run(judge_pairs(PAIRS, NAMES, config, Path(sys.argv[2]), print))
"""


def test_a_kill_in_the_middle_loses_at_most_what_was_under_way(tmp_path):
    cache = tmp_path / "replies.jsonl"
    hang = lambda number, prompt: Says(delay_s=30, body={}) if number >= 6 else None  # noqa: E731
    with JudgeServer(hang) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, server.url, str(cache)],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.DEVNULL,
        )
        for _ in range(1200):
            if len(server.prompts) >= 8:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(cache.read_bytes().splitlines()) == 6
        with cache.open("ab") as file:
            file.write(b'{"key": "torn')  # what a crash in a write leaves
        server.script = lambda number, prompt: None
        judged = judge(server.url, cache, timeout_s=5)
    assert preferences(judged) == EXPECTED
    assert judged.account["n_judged_before"] == 6
    assert max(Counter(server.paid).values()) == 1
    assert all(json.loads(line)["key"] for line in cache.read_text().splitlines())


def test_a_full_disk_is_no_group_of_errors(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with JudgeServer() as server, pytest.raises(OSError, match="No space") as caught:
        judge(server.url, tmp_path / "replies.jsonl")
    assert str(tmp_path) in str(caught.value)
