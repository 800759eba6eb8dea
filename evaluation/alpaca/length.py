"""The length-controlled win rate: what the win rate would be had both outputs been equally long.

AlpacaEval's library fits a logistic model of the verdicts (a length term, the instruction's
difficulty, the model) and predicts each verdict with the length term at zero. It needs a file of
its own from the hub. Where that cannot be had, the rate is absent and the reason is given; from
weights that were fitted before it can be predicted without it.
"""

from __future__ import annotations

import contextlib
import csv
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from evaluation.alpaca import hub
from evaluation.alpaca.config import LengthControlConfig
from evaluation.alpaca.files import read_items, read_text
from evaluation.alpaca.verdicts import Floats, Verdicts

DIFFICULTY_TERM = "instruction_difficulty"
MODEL_TERM = "not_gamed_baseline.astype(float)"
LEAST_VERDICTS = 10
"""The library's five-fold cross-validation wants two verdicts in each fold."""


@dataclass(frozen=True, eq=False)
class LengthControl:
    """Length-controlled preferences [n] in [0, 1], NaN where not predicted; or why there are none.

    `source` says how they were come by.
    """

    preference_n: Floats | None
    source: str | None = None
    absent: str | None = None


def length_controlled(
    verdicts: Verdicts, config: LengthControlConfig, instructions: Sequence[str] | None
) -> LengthControl:
    """Predict the verdicts at equal length, from given weights or by the library's fit.

    Args:
        verdicts: The n rows.
        config: Where the files are.
        instructions: The benchmark's instructions in their order, which is the order of the
            library's difficulties; None where they are not known.

    Raises:
        UserError: A file that the configuration names is missing or wrong.
    """
    if config.weights is not None and config.difficulty is not None:
        name = config.model or verdicts.model
        preference_n = predicted(verdicts, config.weights, config.difficulty, name)
        return LengthControl(preference_n, f"predicted from the weights of {name}")
    problem = unfit(verdicts)
    if problem:
        return LengthControl(None, absent=problem)
    places_n = _places(verdicts, instructions)
    if isinstance(places_n, str):
        return LengthControl(None, absent=places_n)
    try:
        gamed = config.gamed or hub.fetch(hub.GAMED)
    except hub.UnreachableError as error:
        return LengthControl(None, absent=str(error))
    read_text(gamed, "AlpacaEval's df_gamed.csv")
    return _fitted(verdicts, places_n, gamed)


def predicted(verdicts: Verdicts, weights: Path, difficulty: Path, model: str | None) -> Floats:
    """Preferences [n] in [0, 1] from fitted weights and difficulties.

    The logistic function of (the model's term + its difficulty weight × difficulty), the length
    term being zero; the reference's weights are zero by construction.

    Raises:
        UserError: The model has no weights, or no row has a difficulty.
    """
    from scipy.special import expit  # noqa: PLC0415 (half a second)

    model_weight, difficulty_weight = _weights(weights, model)
    difficulty_n = _difficulties(verdicts, difficulty)
    if np.isnan(difficulty_n).all():
        raise UserError(f"{difficulty}: has no difficulty for any instruction of the verdicts")
    return expit(model_weight + difficulty_weight * difficulty_n)


def _weights(path: Path, model: str | None) -> tuple[float, float]:
    """(the model's term, its weight on difficulty)."""
    lines = csv.DictReader(read_text(path, "fitted weights, a CSV").splitlines())
    table = {row.get("") or row.get("model"): row for row in lines}
    row = table.get(model)
    if row is None:
        raise UserError(
            f"{path}: has no weights of the model {model!r}; name its row as length_control.model"
        )
    try:
        return float(row[MODEL_TERM]), float(row[DIFFICULTY_TERM])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: the row of {model!r} lacks a number for {MODEL_TERM!r} or {DIFFICULTY_TERM!r}"
        ) from None


def _difficulties(verdicts: Verdicts, path: Path) -> Floats:
    """Difficulty [n] by instruction, or by place for a file that holds no instructions."""
    what = "difficulties of the instructions"
    rows: list[Any]
    if path.suffix == ".csv":
        rows = list(csv.DictReader(read_text(path, what).splitlines()))
    else:
        rows = [row for row in read_items(path, what) if isinstance(row, dict)]
    try:
        values = [float(row[DIFFICULTY_TERM]) for row in rows]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: every row needs a number {DIFFICULTY_TERM!r}") from None
    of = {r["instruction"]: v for r, v in zip(rows, values, strict=True) if r.get("instruction")}
    if of and any(verdicts.instruction_n):
        return np.array([of.get(text, np.nan) for text in verdicts.instruction_n], np.float64)
    if len(values) != len(verdicts.instruction_n):
        raise UserError(
            f"{path}: holds {len(values)} difficulties without instructions, and there are"
            f" {len(verdicts.instruction_n)} verdicts: they cannot be matched by their place"
        )
    return np.array(values, np.float64)


def _places(verdicts: Verdicts, instructions: Sequence[str] | None) -> list[int] | str:
    """Each row's place among the benchmark's instructions [n], or why that is not known."""
    if instructions is None:
        return "the benchmark's instructions are not at hand, by which verdicts get a difficulty"
    if not any(verdicts.instruction_n) and len(verdicts.instruction_n) == len(instructions):
        return list(range(len(instructions)))
    place_of = {text: place for place, text in enumerate(instructions)}
    places = [place_of.get(text or "", -1) for text in verdicts.instruction_n]
    strangers = sum(place < 0 for place in places)
    if strangers:
        return f"{strangers} of the verdicts are on none of the benchmark's instructions"
    return places


def unfit(verdicts: Verdicts) -> str | None:
    """Why the library cannot fit these verdicts, None where it can."""
    if np.isnan(verdicts.length_1_n).any() or np.isnan(verdicts.length_2_n).any():
        return "some rows hold neither the two outputs nor their lengths"
    if verdicts.kept_n.sum() < LEAST_VERDICTS:
        return f"fewer than {LEAST_VERDICTS} verdicts to fit"
    if np.ptp(verdicts.length_1_n - verdicts.length_2_n) == 0:
        return "the two outputs differ in length by the same everywhere"
    return None


def _fitted(verdicts: Verdicts, places_n: Sequence[int], gamed: Path) -> LengthControl:
    """The library's fit, with `gamed` for the file that it would fetch from the hub."""
    try:
        import pandas as pd  # noqa: PLC0415
        import sklearn  # noqa: PLC0415

        with warnings.catch_warnings(action="ignore"):
            from alpaca_eval.metrics import glm_winrate  # noqa: PLC0415 (seven seconds)
    except (ImportError, OSError, KeyError) as error:
        # It asks for the user's name when it is imported, which a container may not have.
        return LengthControl(None, absent=f"the library alpaca_eval cannot be imported: {error!r}")
    frame = pd.DataFrame(
        {
            "preference": verdicts.preference_n,
            # The library reads nothing of the outputs but their lengths.
            "output_1": [" " * int(length) for length in verdicts.length_1_n],
            "output_2": [" " * int(length) for length in verdicts.length_2_n],
            "generator_1": verdicts.reference or "reference",
            "generator_2": verdicts.model or "model",
        },
        index=pd.Index(places_n),
    )
    # The library changes a setting of scikit-learn for good, and uses what is to go from it.
    quiet = warnings.catch_warnings(action="ignore", category=FutureWarning)
    with _instead_of_hub(glm_winrate, gamed), sklearn.config_context(), quiet:
        try:
            glm_winrate.get_length_controlled_winrate(
                frame, save_weights_dir=None, is_warn_extreme_changes=False
            )
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{gamed}: the length-controlled win rate cannot be fitted with it: {error!r}"
            ) from error
    return LengthControl(frame["glm_preference"].to_numpy(np.float64), "fitted by alpaca_eval")


@contextlib.contextmanager
def _instead_of_hub(library: Any, path: Path) -> Iterator[None]:
    """Let the library find a local file where it would download it: it has no setting for that."""
    download = library.hf_hub_download
    library.hf_hub_download = lambda **_: str(path)
    try:
        yield
    finally:
        library.hf_hub_download = download
