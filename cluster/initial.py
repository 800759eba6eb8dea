"""The initial model, which is the reference too: found once, and the same whenever a run goes on.

RUN/model.json keeps what `model.path` or `model.make` came to: a branch of a hub repository moves,
and a model is made by code that changes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ValidationError

from configs.errors import UserError
from configs.functions import resolve
from configs.schema import RunConfig
from learner.checkpoint import write_durably

KEPT = "model.json"
MODELS = "base-models"
"""The folder beside the run's, so on its file system, where models that `model.make` makes are kept
for the next run."""
SAMPLES, SAMPLE_BYTES = 16, 1 << 16


class InitialModel(BaseModel):
    """A model's absolute folder or hub id, the commit of a hub id, and what it is known by."""

    path: str
    revision: str | None
    identity: str

    @property
    def named(self) -> str:
        """The folder, or the hub id with its commit, as `selfplay evaluate` takes it."""
        return f"{self.path}@{self.revision}" if self.revision else self.path


def initial_model(config: RunConfig) -> InitialModel:
    """The model that the run began with, or is to begin with.

    Raises UserError where the model that a run began with is gone, or is another one now.
    """
    kept = config.run_dir / KEPT
    if not kept.is_file():
        model = find_model(config)
        write_durably(kept, model.model_dump_json(indent=1))
        return model
    try:
        began = InitialModel.model_validate_json(kept.read_text("utf-8"))
    except ValidationError as error:
        raise UserError(
            f"{kept} is unreadable, and without it nothing tells which model the run began with:"
            f" put it back, or start a new run ({error.errors()[0]['msg']})"
        ) from error
    if config.model.make is not None and not Path(began.path).is_dir():
        began = began.model_copy(update={"path": find_model(config).path})
    now = model_identity(began.path, began.revision)
    if now != began.identity:
        raise UserError(
            f"{config.run_dir} began with another model than {began.path} is now: put that model"
            " back, or start a new run"
        )
    return began


def find_model(config: RunConfig) -> InitialModel:
    """Make the model, or find out where it is and which commit of it."""
    model = config.model
    path = model.path
    if model.make is not None:
        path = str(resolve("model.make", model.make)(config.seed, config.run_dir.parent / MODELS))
    return located(path, model.revision)


def located(path: str, revision: str | None) -> InitialModel:
    """A folder by its absolute path, or a hub id by the commit that `revision` is now."""
    if Path(path).is_dir():
        path = str(Path(path).absolute())
        return InitialModel(path=path, revision=None, identity=model_identity(path, None))
    commit = _commit(path, revision)
    return InitialModel(path=path, revision=commit, identity=model_identity(path, commit))


def pinned(config: RunConfig, model: InitialModel) -> RunConfig:
    """The configuration with the commit of the initial model in the place of its branch."""
    pinned_model = config.model.model_copy(update={"revision": model.revision})
    return config.model_copy(update={"model": pinned_model})


def model_identity(model_path: str, revision: str | None) -> str:
    """What tells one initial model from another: a hub id's commit, a folder's contents in short.

    Of weight files, samples count: hashing gigabytes at each start is not worth it.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        return f"{model_path}@{revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin"):
            _digest_samples(digest, path)
        elif path.name in ("config.json", "tokenizer.json"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _commit(hub_id: str, revision: str | None) -> str:
    """The commit that a revision of a hub id stands for today."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 (a second to import)

    # A file of the cache lies in a folder named by its commit.
    return Path(hf_hub_download(hub_id, "config.json", revision=revision)).parent.name


def _digest_samples(digest: hashlib._Hash, path: Path) -> None:
    """Take in a file's size and evenly spaced parts of it, its first and its last among them."""
    size = path.stat().st_size
    digest.update(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        for place in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * place // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
