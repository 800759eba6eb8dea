"""R, the external reward: the weighted sum of its named parts, and what makes a group unusable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from actors.records import Scores
from configs.rewards import RewardPart

NAN_REWARD = "nan_reward"
NO_VERDICT = "no_verdict"


def combine(scores: Scores, parts: Sequence[RewardPart]) -> npt.NDArray[np.float64]:
    """Return R [G], the sum of weight × part; a part of weight 0 is logged and counts for nothing.

    A value that is NaN or infinite leaves R not finite at its answer, whatever its weight.

    Raises:
        ValueError: A part is missing, or the parts do not score the same number of answers.
    """
    missing = [part.name for part in parts if part.name not in scores.parts]
    if missing:
        raise ValueError(f"part {missing[0]!r} of R has no scores; there are {list(scores.parts)}")
    values = [np.asarray(scores.parts[part.name], dtype=np.float64) for part in parts]
    if any(part_G.ndim != 1 or part_G.shape != values[0].shape for part_G in values):
        # Broadcasting would turn [G, 1] + [G] into [G, G] without a word.
        shapes = {part.name: part_G.shape for part, part_G in zip(parts, values, strict=True)}
        raise ValueError(f"the parts of R differ in shape: {shapes}")
    weights_P = np.array([part.weight for part in parts])
    with np.errstate(invalid="ignore"):  # 0 × infinity is the NaN that is wanted
        return weights_P @ np.stack(values)


def first_problem(scores: Scores, parts: Sequence[RewardPart], *, judged: bool) -> str | None:
    """Return why a group of answers cannot be trained, or None.

    `nan_reward`: R of any answer is not finite (dropping the one answer would bias the mean that
    the others are compared with). `no_verdict`: R_Q is on (`judged`) and not one verdict could be
    parsed; where some could, the others count as their mean.
    """
    if not np.isfinite(combine(scores, parts)).all():
        return NAN_REWARD
    if judged and all(verdict.score is None for verdict in scores.verdicts):
        return NO_VERDICT
    return None
