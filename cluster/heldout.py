"""The held-out problems of a run: measured once before and once after it, and summed up."""

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
from configs.schema import DatasetConfig, HeldoutConfig
from evaluation.heldout import Outcome, evaluate, leaked, normalised, summarise
from learner.checkpoint import write_durably
from rewards.killable import score_apart


class HeldOut:
    """Problems that training never uses, and what came of them in a run's directory."""

    def __init__(self, config: HeldoutConfig, run_dir: Path) -> None:
        """Make the problems."""
        made = resolve("heldout.problems", config.problems)(config.n)
        self.problems = [(problem.text, problem.family) for problem in made]
        self._run_dir = run_dir
        self._verify = functools.partial(
            score_apart, config.verifier, config.answer_deadline_s, "heldout.verifier"
        )
        named = config.identity
        self._identity = resolve("heldout.identity", named) if named else normalised

    async def measured(
        self,
        when: str,
        policy: Generator,
        encode: Callable[[str], TokenIds],
        sampling: Sampling,
    ) -> Outcome:
        """The greedy answers `before` or `after`; measured once, also where a run is resumed.

        `encode(query_text)` makes the Solver's prompt.
        """
        path = self._run_dir / f"heldout-{when}.json"
        if path.is_file():
            outcome = _read(path)
        else:
            outcome = await evaluate(policy, self.problems, encode, sampling, self._verify)
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
