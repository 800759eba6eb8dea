"""Sections that contradict each other, and what one section takes from another."""

from __future__ import annotations

import pytest

from configs.errors import UserError
from configs.load import load, load_resolved, save_resolved
from tests.conftest import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
PART = "rewards.parts.0"
SMALL = ["queries=4", "answers=3", f"{PART}.answer_deadline_s=8"]
"""12 answers of 8 s, and 2 s each for a new process: 120 s for one round."""
MIX = ["source.kind=mix", "source.dataset={path: rows.jsonl}"]


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


@pytest.mark.parametrize(
    ("more", "deadline"),
    [([], 600), (["staleness=9"], 1200), (["queries=8", "staleness=4"], 1200)],
    ids=["the default is enough", "rounds ahead", "more answers"],
)
def test_a_deadline_that_nobody_set_is_long_enough_and_stays_so(more, deadline, tmp_path):
    config = load(QUICKSTART, [*SMALL, *more])
    assert config.verifier_parts[0].fleet.deadline_s == deadline
    save_resolved(config, tmp_path)
    assert load_resolved(tmp_path) == config


@pytest.mark.parametrize(("queries", "share"), [(4, 0.5), (5, 0.6), (10, 0.8), (3, 0.3)])
def test_a_mix_leaves_the_challenger_two_queries_to_compare(queries, share):
    sizes = [f"queries={queries}", f"source.dataset_share={share}"]
    assert load(QUICKSTART, [*MIX, *sizes]).queries == queries
    more = [f"queries={queries - 1}", f"source.dataset_share={share}"]
    with pytest.raises(UserError, match=rf"source\.dataset_share .*: set queries to {queries} or"):
        load(QUICKSTART, [*MIX, *more])
    load(QUICKSTART, [*MIX, *more, "challenger.alpha=0"])


def test_a_safety_classifier_needs_queries_to_judge():
    safety = "gate.safety={model: judge, labels: [unsafe]}"
    config = load(QUICKSTART, [safety, "gate.safety.fleet.cpus=0.5"])
    assert config.gate.safety is not None
    assert config.fleets["safety"] is config.gate.safety.fleet
    load(QUICKSTART, [safety, *MIX])
    grpo = ["algorithm=grpo", "rewards.quality=null", "source.kind=dataset", MIX[1]]
    with pytest.raises(UserError, match=r"gate\.safety judges the Challenger's .*safety to null"):
        load(QUICKSTART, [safety, *grpo])


def test_other_fleets_have_no_such_limit():
    preset = QUICKSTART.with_name("llama-3.2-3b-lsp.yaml")
    assert load(preset, [f"{PART}.fleet.deadline_s=1"]).preference_parts[0].fleet.deadline_s == 1
