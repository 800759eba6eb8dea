"""What `selfplay evaluate` is given: a run or a model, and the configuration that follows from it.

A run is asked as it was trained: with its engines, prompt, system message and chat date, by its
newest checkpoint. For a model the engines follow from the machine and from the model's own context.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers import AutoConfig

from actors.roles import solver_file
from actors.vllm_start import check_model
from cluster.initial import InitialModel, initial_model, located
from cluster.rundir import newest_export, reopen_run
from configs.errors import UserError
from configs.load import RESOLVED, configured
from configs.schema import RunConfig
from evaluation.config import EvaluationConfig

GPU_CONTEXT, CPU_CONTEXT = 8192, 4096
"""Most tokens of prompt and answer, where nobody says; a model may have fewer."""
CPU_SEQUENCES = 64
OUT = Path("runs") / "evaluation"

K = TypeVar("K", bound=EvaluationConfig)
Values = dict[str, Any]


@dataclass(frozen=True)
class Evaluated(Generic[K]):
    """A model and how it is asked.

    `name` is for people: two runs may have the same. `identity` tells its weights from all others.
    Results go to `place`, into a folder that is named by the evaluation with `before` and `after`
    around it.
    """

    name: str
    identity: str
    path: str
    revision: str | None
    config: K
    place: Path
    before: str = ""
    after: str = ""

    @property
    def asked(self) -> dict[str, Any]:
        """All that its answers to a query depend on beside the sampling, as JSON."""
        config = self.config
        return {
            "weights": self.identity,
            "prompt": solver_file(config.prompt).text,
            "system": config.system,
            "chat_date": config.chat_date.isoformat(),
            "context": config.rollout.context,
            "dtype": config.rollout.dtype,
        }

    def out(self, evaluation: str) -> Path:
        """The folder of an evaluation's results, where the user names none."""
        return self.place / f"{self.before}{evaluation}{self.after}"


def find_evaluated(
    kind: type[K], named: str, overrides: Sequence[str] = (), values: Values | None = None
) -> Evaluated[K]:
    """The run or model that `named` stands for, with its configuration.

    Args:
        kind: Of the configuration.
        named: A run directory, a model's folder or a hub id, with @ and a revision or without.
        overrides: `a.b=c` settings, which go before all defaults.
        values: Settings from other options of the command line.

    Raises:
        UserError: There is no such run or model, the run has no checkpoint, or a setting is wrong.
    """
    hub_id, at, revision = named.partition("@")
    if at and not Path(named).exists():
        named, overrides = hub_id, [f"revision={json.dumps(revision)}", *overrides]
    # First: a mistyped key is found before a model is looked for.
    given = configured(kind, _copy(values), overrides, "the command line")
    if is_run(named):
        return _of_run(kind, Path(named), overrides, values)
    check_model(named, given.revision, given.trust_remote_code, "evaluate")
    defaults = _copy(values) | {"rollout": engine_defaults(named, given)}
    config = configured(kind, defaults, overrides, f"the defaults for {named}")
    model = located(named, given.revision)
    if Path(model.path).is_dir():
        label = Path(model.path).name
        name = _folder_name(model)
    else:
        label = named.replace("/", "--")
        name = f"{named}@{given.revision}" if given.revision else named
    before = f"{label}-"
    return Evaluated(name, model.identity, model.path, model.revision, config, OUT, before)


def find_base(
    kind: type[K], run: Path, overrides: Sequence[str] = (), values: Values | None = None
) -> Evaluated[K]:
    """The model that a run began with, asked as the run asks."""
    began = initial_model(reopen_run(run))
    config = configured(kind, _run_values(run, values), overrides, str(run / RESOLVED))
    return Evaluated(_folder_name(began), began.identity, began.path, began.revision, config, run)


def is_run(named: str) -> bool:
    """Whether a run directory is named, not a model."""
    return (Path(named) / RESOLVED).is_file()


def engine_defaults(model: str, config: EvaluationConfig) -> Values:
    """The engines of a model that no run configures."""
    own = _context(model, config.revision, config.trust_remote_code)
    if torch.cuda.is_available():
        return {"gpus": 1, "context": min(own, GPU_CONTEXT)}
    return {
        "dtype": "float32",
        "eager": True,
        "threads": len(os.sched_getaffinity(0)),
        "context": min(own, CPU_CONTEXT),
        "max_sequences": CPU_SEQUENCES,
    }


def _of_run(
    kind: type[K], run: Path, overrides: Sequence[str], values: Values | None
) -> Evaluated[K]:
    model = located(str(newest_export(run)), None)
    config = configured(kind, _run_values(run, values), overrides, str(run / RESOLVED))
    if config.revision is not None:
        raise UserError(f"revision: {run} is a run, whose checkpoints have none: leave it out")
    iteration = Path(model.path).parent.name
    name = f"{run.absolute().name}@{iteration}"
    place, after = run / "evaluation", f"-{iteration}"
    return Evaluated(name, model.identity, model.path, None, config, place, after=after)


def _folder_name(model: InitialModel) -> str:
    """Its folder's name, or a hub id's, with the beginning of what tells it from others."""
    return f"{Path(model.path).name}@{model.identity.rpartition('@')[2][:8]}"


def _run_values(run: Path, values: Values | None) -> Values:
    config: RunConfig = reopen_run(run)
    return _copy(values) | {
        "chat_date": config.model.chat_date.isoformat(),
        "trust_remote_code": config.model.trust_remote_code,
        "prompt": None if config.solver.prompt is None else str(config.solver.prompt),
        "system": config.solver.system,
        "rollout": config.rollout.model_dump(mode="json"),
    }


def _context(model: str, revision: str | None, trust_remote_code: bool) -> int:
    config = AutoConfig.from_pretrained(
        model, revision=revision, trust_remote_code=trust_remote_code
    )
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    return own if isinstance(own, int) else CPU_CONTEXT


def _copy(values: Values | None) -> Values:
    """Overrides change mappings in place."""
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in (values or {}).items()}
