"""The base model of the playground: made from nothing, cached, a plain Hugging Face checkpoint.

Invariant: a checkpoint's name is a hash of everything that shapes it (the playground's sources and
prompts, the recipe, the seed, the libraries), and a folder of that name is always whole: it is
written beside its place and renamed.

    python -m playground.base_model --seed 0 --directory runs/base-models
"""

import argparse
import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path

import filelock
import tokenizers
import torch
import transformers

from playground import abilities
from playground.training import Recipe, train

HERE = Path(__file__).parent
APART = ("abilities.py", "base_model.py", "training_problems.py")


def _fingerprint(seed: int, recipe: Recipe) -> str:
    """Hash of everything that decides the weights."""
    digest = hashlib.sha256()
    # How a model is measured, and what it is trained on later, does not change it.
    sources = sorted(path for path in HERE.rglob("*") if path.suffix in (".py", ".txt"))
    for path in sources:
        if path.name not in APART:
            digest.update(path.relative_to(HERE).as_posix().encode() + path.read_bytes())
    facts = {
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "versions": [torch.__version__, transformers.__version__, tokenizers.__version__],
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:12]


def build(seed: int, directory: Path, recipe: Recipe | None = None) -> Path:
    """The folder of the base model of a seed, trained first if `directory` does not hold it."""
    transformers.utils.logging.disable_progress_bar()
    recipe = recipe or Recipe()
    directory = Path(directory)
    folder = directory / f"base-{seed}-{_fingerprint(seed, recipe)}"
    if folder.is_dir():
        return folder
    directory.mkdir(parents=True, exist_ok=True)
    # Whoever else wants it meanwhile waits, instead of making it too.
    with filelock.FileLock(directory / f".{folder.name}.lock"):
        if not folder.is_dir():
            _make(folder, recipe, seed)
    return folder


def _make(folder: Path, recipe: Recipe, seed: int) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
        made = Path(scratch) / "checkpoint"
        model, tokenizer = train(recipe, seed)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        os.rename(made, folder)


def main() -> None:
    """Builds the base model of a seed and prints what it can do."""
    parser = argparse.ArgumentParser(description="Make the playground's base model.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=Path("runs/base-models"))
    parser.add_argument("--problems", type=int, default=1000, help="development problems to score")
    arguments = parser.parse_args()
    folder = build(arguments.seed, arguments.directory)
    print(folder)
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    print(abilities.table(abilities.measure(model, tokenizer, arguments.problems)))


if __name__ == "__main__":
    main()
