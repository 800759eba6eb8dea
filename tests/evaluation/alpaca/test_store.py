"""The file of paid replies."""

from __future__ import annotations

import pytest

from configs.errors import UserError
from evaluation.alpaca.store import Reply, ReplyStore, request_key

REPLY = Reply("é\u2028<verdict>1</verdict>\n", "stop", (("m", -0.5), ("M", -1.0)), 10, 3)


def test_replies_come_back_as_they_were(tmp_path):
    path = tmp_path / "deep" / "replies.jsonl"
    with ReplyStore(path) as store:
        assert store.get("a") is None
        store.put("a", REPLY)
        store.put("b", Reply(""))
        store.put("c", Reply("", refusal="400: no"))
        assert path.read_bytes().count(b"\n") == 3, "a reply waits in a buffer"
    with ReplyStore(path) as store:
        assert len(store) == 3
        assert store.get("a") == REPLY
        assert store.get("b") == Reply("")
        assert store.get("c") == Reply("", refusal="400: no")


def test_a_torn_last_line_is_cut_off(tmp_path):
    path = tmp_path / "replies.jsonl"
    with ReplyStore(path) as store:
        store.put("a", REPLY)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    with ReplyStore(path) as store:
        assert len(store) == 1
        store.put("b", REPLY)
    with ReplyStore(path) as store:
        assert store.get("b") == REPLY
    path.write_bytes(whole[:20])
    with ReplyStore(path) as store:
        assert len(store) == 0


def test_two_evaluations_do_not_share_it_at_once(tmp_path):
    path = tmp_path / "replies.jsonl"
    with ReplyStore(path), pytest.raises(UserError, match="another evaluation"):
        ReplyStore(path).__enter__()
    with ReplyStore(path):
        pass


@pytest.mark.parametrize("line", ["no json", "[]", "{}", '{"key": "a", "unknown": 1}'])
def test_a_file_that_is_something_else_is_left_alone(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{line}\n", "utf-8")
    with pytest.raises(UserError, match="no reply"):
        ReplyStore(path).__enter__()
    assert path.read_text("utf-8") == f"{line}\n"


def test_a_key_is_of_everything_that_is_sent():
    body = {"model": "j", "messages": [{"role": "user", "content": "x"}]}
    key = request_key(body)
    assert key == request_key(dict(reversed(body.items())))
    assert key != request_key(body | {"temperature": 0})
