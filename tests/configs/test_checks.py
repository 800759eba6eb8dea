"""A verifier's actor at work never looks hung: its fleet's deadline holds every call in hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import load

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
PART = "rewards.parts.0"
SMALL = ["queries=4", "answers=3", f"{PART}.answer_deadline_s=8"]
"""12 answers of 8 s, and 2 s each for a new process: 120 s for one round."""


@pytest.mark.parametrize(
    ("more", "needed"),
    [([], 120), (["staleness=2"], 360), ([f"{PART}.fleet.replicas=2"], 120)],
    ids=["one round", "rounds ahead", "members may be down"],
)
def test_the_deadline_of_a_verifiers_fleet_holds_every_answer_in_hand(more, needed):
    def with_deadline(seconds):
        return load(QUICKSTART, [*SMALL, *more, f"{PART}.fleet.deadline_s={seconds}"])

    assert with_deadline(needed).verifier_parts[0].fleet.deadline_s == needed
    with pytest.raises(UserError) as caught:
        with_deadline(needed - 0.5)
    assert f"set {PART}.fleet.deadline_s to {needed} or more" in str(caught.value)
    assert f"lower {PART}.answer_deadline_s" in str(caught.value)


def test_other_fleets_have_no_such_limit():
    preset = QUICKSTART.with_name("llama-3.2-3b-lsp.yaml")
    assert load(preset, [f"{PART}.fleet.deadline_s=1"]).preference_parts[0].fleet.deadline_s == 1
