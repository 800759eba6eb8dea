"""Verifiers: the built-in ones, and that a misbehaving one costs one answer and no more."""

import asyncio
import os
import time
from pathlib import Path

import numpy as np
import pytest

from actors.function_process import find_function
from actors.member import Post
from configs.errors import UserError
from configs.rewards import REFERENCE_VERIFIERS, VerifierPart
from rewards.killable import KillableVerifier, score_apart
from rewards.verifier import exact_match, math_verify

OBEY = "tests.rewards.verifiers:obey"
PART = VerifierPart(name="obeys", function=OBEY, answer_deadline_s=1.0, failed_score=-1.0)


@pytest.fixture(scope="module")
def verifier():
    verifier = KillableVerifier(OBEY, 1.0, "rewards.parts.obeys.function")
    yield verifier
    verifier.close()


def kinds(verifier, *answers, query=""):
    return [outcome.kind for outcome in verifier.verify([(query, a, None) for a in answers])]


def process_id(verifier):
    (outcome,) = verifier.verify([("", "pid", None)])
    return int(outcome.score)


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pid, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not is_gone(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


def test_exact_match():
    assert exact_match("q", " 4 2\n", "4  2") == 1.0
    assert exact_match("q", "42", "4 2") == 0.0
    with pytest.raises(ValueError, match="compares with a reference answer"):
        exact_match("q", "42", None)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("So it is \\boxed{\\frac{2}{4}}.", "\\frac{1}{2}", 1.0),
        ("The answer is 0.5", "$1/2$", 1.0),
        ("It is $x^2 + 2x + 1$.", "(x+1)^2", 1.0),
        ("first 42, no: 41", "42", 0.0),
        ("I do not know.", "42", 0.0),
        ("1,000", "\\boxed{1000}", 1.0),
        ("She pays \\boxed{36}.", "\\$36", 1.0),
        ("She pays \\boxed{\\$32,348}.", "\\$32,\\!348", 1.0),
        ("She pays \\boxed{63}.", "\\$36", 0.0),
        ("It is 5 dollars.", "$\\$5$", 1.0),
    ],
)
def test_math_verify(answer, reference, score):
    assert math_verify("q", answer, reference) == score


def test_math_verify_refuses_a_reference_without_mathematics():
    with pytest.raises(ValueError, match="finds no expression"):
        math_verify("q", "42", "")


EXAMPLES = {
    "rewards.verifier:exact_match": ("42", "42"),
    "rewards.verifier:math_verify": ("42", "42"),
    "rewards.code:tests_pass": ("def f(): return 42", "assert f() == 42"),
}
"""A right answer and its reference, for each built-in verifier."""


@pytest.mark.parametrize("name", REFERENCE_VERIFIERS)
def test_built_in_verifiers_are_where_the_configuration_says(name, debian_program):
    if name == "rewards.code:tests_pass":
        debian_program("bwrap", "bubblewrap")
    answer, reference = EXAMPLES[name]
    assert find_function(name)("q", answer, reference) == 1.0


def test_one_process_serves_all_batches(verifier):
    assert process_id(verifier) == process_id(verifier) != os.getpid()


def test_each_failure_costs_its_answer_only(verifier):
    answers = ["fine", "hang", "raise", "crash", "true", "exit", "text", "none", "nan", "fine"]
    expected = "scored hung raised crashed scored crashed no_number no_number no_number scored"
    assert kinds(verifier, *answers) == expected.split()


def test_a_score_is_whatever_float_takes_but_text(verifier):
    assert kinds(verifier, "object", "fraction") == ["no_number", "scored"]
    (outcome,) = verifier.verify([("", "fraction", None)])
    assert outcome.score == 0.5


def test_scores_stay_with_their_answers(verifier):
    outcomes = verifier.verify([("", answer, None) for answer in ("fine", "hang", "true", "raise")])
    assert [outcome.score for outcome in outcomes] == [0.5, None, 1.0, None]


def test_slow_answers_are_each_within_their_own_deadline():
    slow = KillableVerifier("tests.rewards.verifiers:slow", 1.0, "rewards.parts.slow.function")
    try:
        assert kinds(slow, *["0.4"] * 4) == ["scored"] * 4
    finally:
        slow.close()


def test_hang_that_holds_the_interpreter_is_killed(verifier):
    before = process_id(verifier)
    assert kinds(verifier, "hang in C", "fine") == ["hung", "scored"]
    wait_until_gone(before)
    assert process_id(verifier) != before


def test_descendants_die_with_a_hung_verifier(verifier, tmp_path):
    note = tmp_path / "pids"
    assert kinds(verifier, "child then hang", query=str(note)) == ["hung"]
    for pid in note.read_text().split():
        wait_until_gone(int(pid))


def test_forked_child_that_returns_has_no_say(verifier):
    assert kinds(verifier, "fork", "raise", "fine", "fork", "true") == (
        ["scored", "raised", "scored", "scored", "scored"]
    )
    assert kinds(verifier, "raise", "fine") == ["raised", "scored"]


def test_death_while_idle_costs_no_answer(verifier):
    before = process_id(verifier)
    os.kill(before, 9)
    wait_until_gone(before)
    assert kinds(verifier, "fine") == ["scored"]


def test_texts_arrive_as_they_are(verifier):
    strange = "\ud800 \x00 <|eot|> \U0001f600 " + "long " * 50_000
    echo = KillableVerifier("tests.rewards.verifiers:length", 5.0, "rewards.parts.echo.function")
    try:
        (outcome,) = echo.verify([(strange, strange, strange)])
    finally:
        echo.close()
    assert outcome.score == 3 * len(strange)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("tests.rewards.nowhere:f", "No module named 'tests.rewards.nowhere'"),
        ("tests.rewards.verifiers:nothing", "has no attribute 'nothing'"),
        ("tests.rewards.verifiers:not_a_function", "is a int, not a function"),
        ("tests.rewards.exits_at_import:f", "its import ends the process"),
    ],
)
def test_function_that_cannot_be_used_is_the_users_error(function, reason):
    with pytest.raises(UserError, match=reason) as caught:
        KillableVerifier(function, 0.5, "rewards.parts.mine.function")
    assert f"rewards.parts.mine.function {function!r}" in str(caught.value)


def apart(*answers, query=""):
    calls = [(query, answer, None) for answer in answers]
    return score_apart(OBEY, 1.0, "heldout.verifier", calls)


def test_scores_from_a_process_that_is_gone_afterwards():
    scores = asyncio.run(apart("pid", "pid", "hang", "true", "exit", "raise", "nan", "pid"))
    first, second, *middle, last = scores
    assert first == second != last
    assert middle == [None, 1.0, None, None, None]
    for pid in (first, last):
        wait_until_gone(int(pid))


def test_what_a_verifier_started_is_gone_afterwards_too(tmp_path):
    note = tmp_path / "pids"
    assert asyncio.run(apart("child", query=str(note))) == [0.5]
    for pid in note.read_text().split():
        wait_until_gone(int(pid))


def test_an_absent_function_is_named_by_its_own_key():
    scoring = score_apart("tests.rewards.verifiers:nothing", 1.0, "heldout.verifier", [])
    with pytest.raises(UserError, match=r"^heldout\.verifier 'tests.* cannot be used"):
        asyncio.run(scoring)


def test_cancelled_scoring_ends_after_the_answer_in_hand(tmp_path):
    note = tmp_path / "pids"

    async def cancelled():
        scoring = asyncio.create_task(apart(*["child then hang"] * 30, query=str(note)))
        while not note.exists():
            await asyncio.sleep(0.02)
        scoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scoring

    started = time.monotonic()
    asyncio.run(cancelled())
    assert time.monotonic() - started < 15, "it went through the other answers"
    for pid in note.read_text().split():
        wait_until_gone(int(pid))


@pytest.fixture
def actor_class(ray_session):
    import ray

    from rewards.verifier_actor import VerifierActor

    return ray.remote(VerifierActor)


def test_actor_scores_counts_and_stops(actor_class):
    import ray
    import requests

    actor = actor_class.remote(PART, post=Post("reward_obeys-0", "127.0.0.1"))
    both = [
        actor.score.remote("", ["fine", "hang", "pid"], None),
        actor.score.remote("", ["raise", "true", "object"], None),
    ]
    first_G, second_G = ray.get(both, timeout=60)
    assert first_G.dtype == np.float64
    assert first_G[:2].tolist() == [0.5, -1.0]
    # No number is no score: the group is dropped, and not trained on a made-up one.
    np.testing.assert_array_equal(second_G, [-1.0, 1.0, np.nan])
    about = ray.get(actor.describe.remote())
    assert about["name"] == "reward_obeys-0"
    text = requests.get(f"http://{about['metrics_address']}/metrics", timeout=5).text
    for outcome, n in [("scored", 3), ("hung", 1), ("raised", 1), ("no_number", 1)]:
        line = f'selfplay_reward_answers_total{{outcome="{outcome}",part="obeys"}} {n:.1f}'
        assert line in text
    assert 'selfplay_reward_call_seconds_count{part="obeys"} 2.0' in text
    living = int(ray.get(actor.score.remote("", ["pid"], None))[0])
    ray.get(actor.stop.remote(), timeout=10)
    wait_until_gone(living)
    ray.kill(actor)


def test_verifier_dies_with_its_actor(actor_class):
    import ray

    part = PART.model_copy(update={"answer_deadline_s": 60.0})
    actor = actor_class.remote(part, post=Post("reward_obeys-0", "127.0.0.1"))
    own = ray.get(actor.describe.remote(), timeout=60)["pid"]
    pid = int(ray.get(actor.score.remote("", ["pid"], None))[0])
    hung = actor.score.remote("", ["hang in C"], None)
    ray.wait([hung], timeout=0.3)
    os.kill(own, 9)  # as the kernel does when memory runs out
    wait_until_gone(pid)


def test_actor_of_an_absent_function_says_so(actor_class):
    import ray

    part = PART.model_copy(update={"function": "tests.rewards.verifiers:nothing"})
    actor = actor_class.remote(part, post=Post("reward_obeys-0", "127.0.0.1"))
    with pytest.raises(ray.exceptions.RayActorError, match=r"UserError: rewards\.parts\.obeys"):
        ray.get(actor.describe.remote(), timeout=60)
