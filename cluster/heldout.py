"""The problems of a run that training never uses: answered greedily, verified, and summed up."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from actors.generator import Generator
from actors.records import Sampling, TokenIds
from cluster.dataset import load_rows
from configs.functions import resolve
from configs.heldout import HeldoutConfig, ProblemsConfig
from configs.schema import DatasetConfig
from evaluation.heldout import Outcome, Problem, evaluate, leaked, normalised, summarise
from learner.checkpoint import write_durably
from rewards.killable import score_apart

Encode = Callable[[str], TokenIds]
"""Makes the Solver's prompt of a query."""


class Problems:
    """The problems of a section of the configuration."""

    def __init__(self, section: str, config: ProblemsConfig) -> None:
        """Make the problems."""
        self.problems = problems_of(f"{section}.problems", config)
        self._verify = functools.partial(
            score_apart, config.verifier, config.answer_deadline_s, f"{section}.verifier"
        )

    async def outcome(self, policy: Generator, encode: Encode, sampling: Sampling) -> Outcome:
        """The policy's greedy answers, and which are right."""
        return await evaluate(policy, self.problems, encode, sampling, self._verify)


class HeldOut(Problems):
    """The section `heldout`, and what came of it in a run's directory."""

    def __init__(self, config: HeldoutConfig, run_dir: Path) -> None:
        """Make the problems."""
        super().__init__("heldout", config)
        self._run_dir = run_dir
        named = config.identity
        self._identity = resolve("heldout.identity", named) if named else normalised

    async def measured(
        self, when: str, policy: Generator, encode: Encode, sampling: Sampling
    ) -> Outcome:
        """The outcome `before` or `after`; measured once, also where a run is resumed."""
        path = self._run_dir / f"heldout-{when}.json"
        if path.is_file():
            outcome = _read(path)
        else:
            outcome = await self.outcome(policy, encode, sampling)
            _write(path, outcome)
        print(f"  held-out    {100 * outcome.rate:.1f}% of {len(self.problems):,} solved {when}")
        return outcome

    def summary(
        self,
        before: Outcome,
        after: Outcome,
        invented: Collection[str],
        dataset: DatasetConfig | None,
    ) -> dict[str, Any]:
        """The `heldout` of summary.json; `invented` are the Challenger's trained queries."""
        queries = [row.query for row in load_rows(dataset)] if dataset is not None else []
        return summarise(self.problems, before, after, invented, self._identity) | {
            "in_dataset": leaked(self.problems, queries, self._identity)
        }


def problems_of(key: str, config: ProblemsConfig) -> list[Problem]:
    """What the function of `problems` makes."""
    made = resolve(key, config.problems)(config.n)
    return [Problem(one.text, one.family, getattr(one, "reference", None)) for one in made]


def _write(path: Path, outcome: Outcome) -> None:
    stored = {
        "answers": outcome.answers,
        "right": outcome.right_n.tolist(),
        "unverified": outcome.unverified,
    }
    write_durably(path, json.dumps(stored))


def _read(path: Path) -> Outcome:
    stored = json.loads(path.read_text("utf-8"))
    right_n = np.array(stored["right"], dtype=bool)
    return Outcome(tuple(stored["answers"]), right_n, stored["unverified"])
