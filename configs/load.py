"""Reads a configuration: YAML, dotted overrides, and clear sentences for what is wrong in them.

Relative paths in a configuration (`run_dir`, prompt files, data, model folders) mean the current
directory, which is the project's: `ray job submit --working-dir .` starts there too, from a copy.
They are never rewritten, so that the same file gives the same resolved configuration anywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from configs.base import Config
from configs.errors import UserError
from configs.explain import sentences
from configs.provenance import RAY_JOB_VARIABLE, provenance
from configs.schema import RunConfig

RESOLVED = "config.yaml"
CHANGEABLE = re.compile(
    r"learner\.(learning_rate|gradient_clip|kl\.\w+)|challenger\..+|solver\.sampling\..+|gate\..+"
    r"|rewards\.(quality|parts\.\d+)\.weight"
)
"""What a run may change on its way: nothing that a checkpoint must agree with."""

C = TypeVar("C", bound=Config)


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in `path` with `a.b=c` overrides applied.

    Raises UserError, one line per problem, each naming the key, the file and what is allowed.
    """
    config = configured(RunConfig, read_yaml(path), overrides, str(path))
    for place, guard in enumerate(config.guards):
        if guard.set:
            _check_rollback(config, guard.set, f"{path}: guards.{place}.set")
    return config


def changed(config: RunConfig, overrides: Sequence[str], origin: str) -> RunConfig:
    """The configuration with overrides applied; `origin` says where they come from."""
    return configured(RunConfig, config.model_dump(mode="json"), overrides, origin)


def _check_rollback(config: RunConfig, overrides: Sequence[str], origin: str) -> None:
    """Raises UserError where a run could not go on from its checkpoint with these settings."""
    for key, before, after in _changes(config, changed(config, overrides, origin)):
        if not CHANGEABLE.fullmatch(key):
            raise UserError(
                f"{origin} changes {key} from {before!r} to {after!r}, which a run cannot do on its"
                " way; it can change learner.learning_rate, learner.gradient_clip, learner.kl,"
                " challenger, solver.sampling, gate, and the weights of the rewards"
            )


def configured(kind: type[C], values: dict[str, Any], overrides: Sequence[str], origin: str) -> C:
    """`values` with `a.b=c` overrides applied (in place), as a configuration of that kind.

    `origin` says where the values were written. Raises UserError as `load` does.
    """
    written = {override.partition("=")[0]: override for override in overrides}
    for override in overrides:
        _apply(values, override, origin)

    def source(key: str) -> str:
        for dotted, override in written.items():
            if key and (f"{key}.".startswith(f"{dotted}.") or dotted.startswith(f"{key}.")):
                return f"override {override}"
        return origin

    return validate(kind, values, source)


def validate(kind: type[C], values: dict[str, Any], source: Any) -> C:
    """`values` as a configuration of that kind; `source` says where a dotted key was written."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(sentences(error, kind, source))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file{_presets_hint(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys, this is {_name(values)}")
    return values


def _presets_hint(path: Path) -> str:
    presets = sorted(p.name for p in Path(__file__).parent.glob("*.yaml"))
    return f"; presets in configs/ are {', '.join(presets)}" if path.suffix == ".yaml" else ""


class _Loader(yaml.SafeLoader):
    """YAML without its silent fault: a key written twice is an error, not the last one's win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # pyright: ignore[reportUnknownMemberType]
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {error}") from None


def _apply(values: dict[str, Any], override: str, origin: str) -> None:
    """Set the dotted key of one override in `values`, in place."""
    dotted, equals, text = override.partition("=")
    steps = dotted.split(".")
    if not equals or not all(steps):
        raise UserError(f"override {override!r}: write a.b=c, for example rollout.replicas=6")
    target: Any = values
    for depth, step in enumerate(steps[:-1]):
        here = ".".join(steps[: depth + 1])
        target = _enter(target, step, f"override {override}: {here}", origin)
    value = _parse(text, f"override {override}")
    _put(target, steps[-1], value, f"override {override}: {dotted}", origin)


def _enter(target: Any, step: str, where: str, origin: str) -> Any:
    if isinstance(target, list):
        return target[_index(target, step, where, origin)]
    child = target.get(step)
    if child is None:
        child = target[step] = {}
    if not isinstance(child, dict | list):
        raise UserError(f"{where} is {child!r} in {origin} and has no keys of its own")
    return child


def _put(target: Any, step: str, value: Any, where: str, origin: str) -> None:
    if isinstance(target, list):
        target[_index(target, step, where, origin)] = value
    else:
        target[step] = value


def _index(target: list[Any], step: str, where: str, origin: str) -> int:
    if not step.isdecimal() or int(step) >= len(target):
        raise UserError(
            f"{where}: {origin} has the items 0 to {len(target) - 1} there, not {step!r}"
        )
    return int(step)


def _name(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def require_shared_run_dir(run_dir: Path, submitted: bool | None = None) -> None:
    """Refuse a relative `run_dir` in a submitted job, whose directory is a copy that goes away.

    `submitted` None: where this process is one.
    """
    if submitted is None:
        submitted = RAY_JOB_VARIABLE in os.environ
    if submitted and not run_dir.is_absolute():
        raise UserError(
            f"run_dir {run_dir} is relative, and a submitted Ray job runs in a temporary copy of"
            " the project: name it by an absolute path that every node shares"
        )


def save_resolved(config: RunConfig, run_dir: Path) -> Path:
    """Write RUN/config.yaml, whole or not at all: the configuration under a comment of versions."""
    header = "".join(f"# {name}: {value}\n" for name, value in provenance().items())
    body = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    path = run_dir / RESOLVED
    unfinished = path.with_suffix(".tmp")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(f"# What this run is, with every default.\n{header}\n{body}", "utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"run_dir {run_dir}: cannot write {RESOLVED}: {error.strerror}") from error
    return path


def load_resolved(run_dir: Path) -> RunConfig:
    """The configuration that RUN/config.yaml holds."""
    if not (run_dir / RESOLVED).is_file():
        raise UserError(f"{run_dir} is no run directory: it holds no {RESOLVED}")
    return load(run_dir / RESOLVED)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """`key: old → new` for every setting that differs, where the run lives left out."""
    return [f"{key}: {before!r} → {after!r}" for key, before, after in _changes(old, new)]


def _changes(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of every setting that differs, where the run lives left out."""
    before = flat(old.model_dump(mode="json", exclude={"run_dir"}))
    after = flat(new.model_dump(mode="json", exclude={"run_dir"}))
    keys = [*before, *(key for key in after if key not in before)]
    return [
        (key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)
    ]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by dotted key; what is empty stands for itself."""
    if isinstance(value, dict) and value:
        pairs = value.items()
    elif isinstance(value, list) and value:
        pairs = enumerate(value)
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, child in pairs:
        found |= flat(child, f"{prefix}.{key}" if prefix else str(key))
    return found
