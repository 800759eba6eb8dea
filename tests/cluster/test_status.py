"""The status of a live run as text, and what `selfplay scale` takes."""

from __future__ import annotations

import pytest

from cluster.cli_live import sizes_of
from cluster.status import status_text
from configs.errors import UserError


def member(name: str, version: int | None, state: str = "serving") -> dict:
    member = {"name": name, "state": state, "version": version, "in_flight": 1, "restarts": 0}
    # What has not started has said nothing of itself.
    return member if state == "starting" else member | {"pid": 4711}


STATUS = {
    "run": "/shared/runs/lsp",
    "iteration": 7,
    "iterations": 500,
    "version": 7,
    "awaited": "3 of the 8 groups of iteration 8",
    "last": {"seconds": 61.25, "tokens_per_second": 12345.6, "staleness_mean": 0.5,
             "staleness_max": 1},
    "fleets": {
        "rollout": {
            "target": 3, "serving": 2, "waiting": 0, "in_flight": 12, "restarts": 1,
            "members": [member("rollout-0", 7), member("rollout-1", 6),
                        member("rollout-2", 0, "starting")],
            "unplaced": {"rollout-2": "rollout-2 has no place: it asks for 1 GPUs"},
        },
        "judge": {"target": 1, "serving": 1, "waiting": 4, "in_flight": 1, "restarts": 0,
                  "members": [member("judge-0", None)], "unplaced": {}},
    },
}  # fmt: skip


def test_the_status_reads_well():
    assert status_text(STATUS) == (
        """\
/shared/runs/lsp: 7 of 500 iterations, policy version 7
  waits for   3 of the 8 groups of iteration 8
  last        61.2 s, 12,346 tokens/s, staleness 0.5 on average, 1 at most

  fleet    actors  serving  version  calls  waiting  restarts
  rollout       3        2      6–7     12        0         1
  judge         1        1        –      1        4         0

  member        state  version  calls  restarts  process
  rollout-0   serving        7      1         0     4711
  rollout-1   serving        6      1         0     4711
  rollout-2  starting        0      1         0        –
  judge-0     serving        –      1         0     4711
  rollout-2 has no place: it asks for 1 GPUs"""
    )


def test_sizes_are_read():
    assert sizes_of(["rollout=6", "reward_x=1"]) == {"rollout": 6, "reward_x": 1}


@pytest.mark.parametrize("text", ["rollout", "rollout=", "rollout=-1", "rollout=two", "=3"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="write FLEET=N"):
        sizes_of([text])


def test_two_sizes_of_a_fleet_are_refused():
    with pytest.raises(UserError, match="rollout has two sizes"):
        sizes_of(["rollout=6", "rollout=7"])
