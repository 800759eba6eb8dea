"""What the judge refuses for good: of single pairs it is counted, of all requests it is an end."""

from __future__ import annotations

import pytest

from tests.evaluation.alpaca.judge_server import JudgeServer, error
from tests.evaluation.alpaca.judging import EXPECTED, PAIRS, judge, preferences


@pytest.mark.parametrize(
    "refusal",
    [error(400, "maximum context length is 100 tokens"), error(403, "flagged by moderation")],
    ids=["400", "403"],
)
@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_refusal_of_one_pair_is_kept_and_counted_and_not_asked_again(tmp_path, refusal, place):
    cache = tmp_path / "replies.jsonl"
    script = lambda n, p: refusal if f"question {place}\n" in p else None  # noqa: E731
    with JudgeServer(script) as server:
        first = judge(server.url, cache)
        second = judge(server.url, cache)
    assert first.unfinished is second.unfinished is None
    assert preferences(first) == [*EXPECTED[:place], None, *EXPECTED[place + 1 :]]
    said = f"{refusal.status}: {refusal.body['error']['message']}"
    assert first.rows[place]["refusal"] == said
    assert (first.account["n_refused"], first.account["refusals"]) == (1, [said])
    assert (first.account["n_unparsable"], first.account["n_without_verdict"]) == (0, 0)
    assert first.account["failures"] == []
    (note,) = first.notes
    assert note.startswith("the judge refuses 1 pairs, which count in no rate")
    assert len(server.prompts) == 12
    assert (second.rows, second.notes) == (first.rows, first.notes)
    assert (second.account["n_judged_before"], second.account["n_refused"]) == (11, 1)


def test_a_refusal_of_every_request_is_of_no_pair(tmp_path):
    """Where answers came before, a few at the end are; but no 403, which may be the key's."""
    unknown, forbidden = error(400, "unknown field"), error(403, "not with this key")
    with JudgeServer(lambda number, prompt: unknown) as server:
        everything = judge(server.url, tmp_path / "all.jsonl")
        assert len(server.prompts) <= 5 + 3
        few = judge(server.url, tmp_path / "few.jsonl", pairs=PAIRS[:2])
    assert "the endpoint refuses the requests (400: unknown field)" in everything.unfinished
    assert "no verdict on 2 of 2 pairs: 2 requests failed (400: unknown" in few.unfinished
    assert everything.rows == few.rows == []
    cache = tmp_path / "replies.jsonl"
    with JudgeServer() as server:
        judge(server.url, cache, pairs=PAIRS[:4])
        server.script = lambda number, prompt: forbidden
        key = judge(server.url, cache, pairs=PAIRS[:6])
        server.script = lambda number, prompt: unknown
        many = judge(server.url, cache)
        last = judge(server.url, cache, pairs=PAIRS[:6])
    assert "no verdict on 2 of 6 pairs: 2 requests failed (403: not with" in key.unfinished
    assert "the endpoint refuses the requests (400: unknown field)" in many.unfinished
    assert len(key.rows) == len(many.rows) == 4
    assert (last.unfinished, last.account["n_refused"]) == (None, 2)
