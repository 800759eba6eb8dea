"""Questions to a live run, whose actor dies between who asks and who answers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from cluster.control import Control


def test_a_question_to_an_actor_that_dies_is_asked_again_and_the_run_has_not_ended(
    ray_session: None, tmp_path: Path
):
    asked: list[int] = []

    async def double(number: int) -> int:
        asked.append(number)
        if len(asked) == 1:
            before = await process()
            ray.kill(control._actor, no_restart=False)
            while await process() == before:
                await asyncio.sleep(0.05)
        return 2 * number

    async def process() -> int:
        return await control._actor.__ray_call__.remote(lambda _: os.getpid())

    control = Control(tmp_path / "run", {"double": double})

    async def use() -> None:
        control.start()
        ended = control._actor.ended.remote()
        answer = control._actor.ask.remote("double", {"number": 4})
        assert await asyncio.wait_for(answer, 60) == (True, 8)
        assert asked == [4, 4]
        done, _ = ray.wait([ended], timeout=1)
        assert not done, "the driver is there, and who stops it would not wait"
        await control.stop()
        with pytest.raises(RayActorError):
            await asyncio.wait_for(ended, 60)

    asyncio.run(use())
