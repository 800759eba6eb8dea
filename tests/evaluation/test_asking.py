"""What stands between an evaluation and a fleet: nothing is asked that must wait, or cannot fit."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from actors.records import NO_ROOM, Completion, GenerationRequest, Sampling
from evaluation.asking import PER_CALL, Fitting, Paced, ending_notes, endings


class Engines:
    """Answers with the prompt's length; remembers how much it had in hand at once."""

    def __init__(self) -> None:
        self.now = self.most = self.calls = 0

    async def generate(self, requests):
        self.calls += 1
        self.now += len(requests)
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= len(requests)
        ids = [request.prompt_token_ids for request in requests]
        return [Completion(p, p, str(len(p)), "stop", 0, 0, 0) for p in ids]


def requests(*lengths):
    return [GenerationRequest(np.zeros(n, np.int32), Sampling(), seed=n) for n in lengths]


@pytest.mark.parametrize(("sequences", "engines"), [(1, 1), (3, 2), (PER_CALL, 1), (20, 2)])
def test_no_more_is_asked_than_the_engines_decode_at_once(sequences, engines):
    there = Engines()
    paced = Paced(there, sequences, engines)
    made = asyncio.run(paced.generate(requests(*range(100))))
    assert [completion.text for completion in made] == [str(n) for n in range(100)]
    per_call = min(PER_CALL, sequences)
    assert there.most == sequences // per_call * per_call * engines
    assert there.calls == -(-100 // per_call)


def test_callers_share_the_room():
    there = Engines()

    async def many() -> None:
        paced = Paced(there, 16, 1)
        await asyncio.gather(*(paced.generate(requests(*range(8))) for _ in range(20)))

    asyncio.run(many())
    assert there.most == 16


def test_a_prompt_without_room_is_not_asked_and_keeps_its_place():
    there = Engines()
    made = asyncio.run(Fitting(there, 5).generate(requests(4, 5, 2, 9)))
    assert [completion.text for completion in made] == ["4", "", "2", ""]
    assert [c.finish_reason for c in made] == ["stop", NO_ROOM, "stop", NO_ROOM]
    assert (there.most, made[1].seed) == (2, 5)


def test_what_was_cut_or_left_out_is_said():
    counts = endings(["stop", "length", NO_ROOM, "length"])
    assert counts == {"n_cut": 2, "n_no_room": 1}
    cut, no_room = ending_notes(counts)
    assert cut.startswith("2 answers were cut by sampling.max_tokens")
    assert no_room.startswith("1 prompts leave no room for an answer in rollout.context")
    assert ending_notes(endings(["stop"])) == ()
