"""What a run reads that its user wrote or chose: functions, data, models, prompts.

All of it is checked before anything is started, so that a mistake costs seconds and no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from actors.killable import KillableFunction
from cluster.dataset import ADAPTER, is_file, load_rows
from cluster.heldout import problems_of
from configs.errors import UserError
from configs.functions import resolve
from configs.heldout import ProblemsConfig
from configs.schema import RunConfig


def check_inputs(config: RunConfig) -> None:
    """Check whatever needs no model of `model.make`; raises UserError naming key or file."""
    for key, name in _functions(config):
        resolve(key, name)
    for key, name in _functions_apart(config):
        _check_apart(key, name)
    for section, problems in _problems(config):
        _check_problems(section, problems)
    # A hub data set is not fetched for a plan; a run loads it before it starts an actor.
    if config.source.dataset is not None and is_file(config.source.dataset):
        load_rows(config.source.dataset)
    _check_reward_models(config)
    _check_classifier(config)
    if config.model.path:
        check_prompts(config, config.model.path)


def check_prompts(config: RunConfig, model_path: str) -> None:
    """Check that the model has a chat template and that every fixed prompt fits its engine.

    Raises UserError naming the model, the prompt file or the section whose context is too small.
    """
    # Both take seconds to import.
    from cluster.wiring import Prompts  # noqa: PLC0415
    from rewards.quality import rubric  # noqa: PLC0415

    prompts = Prompts(config, model_path)
    if config.rewards.quality is not None:
        rubric(config.rewards.quality, prompts.encoder)


def _functions(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(key, name) of the functions that the driver calls."""
    named = {"model.make": config.model.make}
    if config.heldout is not None:
        named["heldout.identity"] = config.heldout.identity
    if config.source.dataset is not None:
        named[ADAPTER] = config.source.dataset.adapter
    named |= {f"{section}.problems": made.problems for section, made in _problems(config)}
    return ((key, name) for key, name in named.items() if name is not None)


def _functions_apart(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(key, name) of the functions that run in processes of their own."""
    if config.gate.task_verifier is not None:
        yield "gate.task_verifier", config.gate.task_verifier
    for part in config.verifier_parts:
        yield f"rewards.parts.{part.name}.function", part.function
    for section, problems in _problems(config):
        yield f"{section}.verifier", problems.verifier


def _problems(config: RunConfig) -> list[tuple[str, ProblemsConfig]]:
    """The sections of problems that training never uses."""
    sections = {"heldout": config.heldout, "development": config.development}
    return [(name, section) for name, section in sections.items() if section is not None]


def _check_apart(key: str, name: str) -> None:
    """Import a function as a run will, in a process that may hang or crash over it."""
    function = KillableFunction(name, deadline_s=1.0, key=key)
    function.start()
    function.close()


def _check_problems(section: str, config: ProblemsConfig) -> None:
    """Make the problems once, to see that there are that many."""
    name, n, key = config.problems, config.n, f"{section}.problems"
    try:
        made = problems_of(key, config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{key} {name!r} gives no {n} problems, each with a text and a family"
            f" ({type(error).__name__}: {error}): lower {section}.n, or mend or name another"
            " function"
        ) from error
    if len(made) != n:
        raise UserError(
            f"{key} {name!r} gives {len(made)} problems where {section}.n asks for {n}: lower"
            f" {section}.n, or mend or name another function"
        )


def _check_classifier(config: RunConfig) -> None:
    from actors.classifier import SafetyInput  # noqa: PLC0415

    if config.gate.safety is not None:
        SafetyInput(config.gate.safety)


def _check_reward_models(config: RunConfig) -> None:
    from rewards.preference import PairEncoder  # noqa: PLC0415

    for part in config.preference_parts:
        PairEncoder(part, config.model.chat_date)
