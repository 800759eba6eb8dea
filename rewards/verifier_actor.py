"""The Ray actor around one verifier: a part of R that is a function."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from actors.member import FleetMember, Post
from configs.rewards import VerifierPart
from rewards.killable import KillableVerifier, Outcome
from rewards.member import ANSWERS, SECONDS


class VerifierActor(FleetMember):
    """A verifier in its own killable process; `ray.remote(VerifierActor)` makes it an actor."""

    def __init__(self, part: VerifierPart, *, post: Post) -> None:
        """Start the verifier's process.

        Raises:
            UserError: The function cannot be imported.
        """
        super().__init__(post)
        self._part = part
        # One thread for all: calls queue up here, and the process lives as long as its thread.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=part.name)
        key = f"rewards.parts.{part.name}.function"
        self._verifier = self._thread.submit(
            KillableVerifier, part.function, part.answer_deadline_s, key
        ).result()

    async def score(
        self,
        query_text: str,
        answer_texts: list[str],
        reference: str | None,
        iteration: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """Return the scores [G]: `failed_score` for an answer that made the verifier hang, crash or
        raise, NaN where it returned no finite number, so that the group is dropped and counted.
        `iteration`, if there is one, stands in the log from now on."""
        self.note_iteration(iteration)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, self._score, query_text, answer_texts, reference
        )

    async def stop(self) -> None:
        """Kill the verifier's process."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._verifier.close)

    def _score(
        self, query_text: str, answer_texts: list[str], reference: str | None
    ) -> npt.NDArray[np.float64]:
        with SECONDS.labels(self._part.name).time():
            outcomes = self._verifier.verify([(query_text, a, reference) for a in answer_texts])
        for outcome in outcomes:
            ANSWERS.labels(self._part.name, outcome.kind).inc()
        return np.array([self._score_of(outcome) for outcome in outcomes])

    def _score_of(self, outcome: Outcome) -> float:
        if outcome.score is not None:
            return outcome.score
        return math.nan if outcome.kind == "no_number" else self._part.failed_score
