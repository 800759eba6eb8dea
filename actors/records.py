"""The records of a game: what the Challenger and the Solver produced, exactly as generated.

Token ids are kept as the engine made them and are never re-tokenised; arrays are numpy so
that Ray ships them without copying. A record holds no advantage before the learner's batch is
whole: rewards belong to a group, advantages to the batch it is trained in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NO_ROOM = "no_room"
"""`Completion.finish_reason` of a prompt that left no room in the context, and was not asked."""
NO_SEED = -1
"""`Completion.seed` of a request that left the randomness to the engine (vLLM reads -1 so too)."""
TokenIds = npt.NDArray[np.int32]
LogProbs = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sampled sequence (a query or an answer), with its prompt.

    `logprobs` [len(token_ids)] are the engine's, after temperature, or None where not asked for.
    `version_min` and `version_max` are the policy versions of its first and last token: they
    differ where a weight update fell in the middle of the generation.
    """

    prompt_token_ids: TokenIds
    token_ids: TokenIds
    text: str
    finish_reason: str  # "stop" or "length"; of an evaluation's prompt that was not asked, NO_ROOM
    version_min: int
    version_max: int
    seed: int
    logprobs: LogProbs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One query and where it came from.

    `completion` is what the Challenger sampled, None for a query out of a data set; `reference`
    is the data set's reference answer, None for a query of the Challenger.
    """

    group_id: str
    text: str
    task: str = ""
    template: str = ""
    completion: Completion | None = None
    reference: str | None = None

    @property
    def from_challenger(self) -> bool:
        """Whether the policy wrote this query, so that it can be trained on."""
        return self.completion is not None


@dataclass(frozen=True, slots=True, eq=False)
class Rejected:
    """A Challenger query that the admission gate turned away, and why."""

    query: Query
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """One quality verdict of the reference model: `score` 0..7, None where unparsable."""

    score: int | None
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the reward actors said of the G answers of one query, raw (no weight applied).

    `parts`: name of a part of R -> values [G]. `verdicts`: [G], empty where quality is off.
    """

    parts: dict[str, npt.NDArray[np.float64]]
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A query with its G answers and their scores: the unit that is trained, or dropped, whole.

    A rejected query that is trained under `challenger.rejected: worst` is a group without
    answers and with `reject_reason` set.
    """

    query: Query
    answers: tuple[Completion, ...]
    scores: Scores
    reject_reason: str | None = None

    @property
    def version_min(self) -> int:
        """The oldest policy version that wrote any token of this group."""
        versions = [a.version_min for a in self.answers]
        if self.query.completion is not None:
            versions.append(self.query.completion.version_min)
        return min(versions)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one role samples. `max_tokens` bounds the new tokens of one completion."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    logprobs: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """One prompt to be sampled: `seed` None leaves the randomness to the engine."""

    prompt_token_ids: TokenIds
    sampling: Sampling
    seed: int | None = None
