"""AlpacaEval's own files on the Hugging Face hub, where it can be reached."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = "tatsu-lab/alpaca_eval"
INSTRUCTIONS = "alpaca_eval_gpt4_baseline.json"
"""The 805 instructions with their subsets (and a reference model's outputs)."""
GAMED = "df_gamed.csv"
"""Verdicts on two deliberately long and short references: what the length model is fitted with."""
ASK_S = 5.0


class UnreachableError(Exception):
    """A file cannot be had from the hub: the reason, short."""


def fetch(filename: str) -> Path:
    """The local copy of a file of AlpacaEval's data set, downloaded where it is not in the cache.

    Raises:
        UnreachableError: It is not in the cache, and the hub does not answer or refuses.
    """
    from huggingface_hub import (  # noqa: PLC0415 (half a second)
        HfApi,
        hf_hub_download,
        try_to_load_from_cache,
    )

    cached = try_to_load_from_cache(REPOSITORY, filename, repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached)
    try:
        # One short question first: the download itself asks for half a minute before it gives up.
        HfApi().dataset_info(REPOSITORY, timeout=ASK_S)
        return Path(hf_hub_download(REPOSITORY, filename, repo_type="dataset"))
    except Exception as error:
        # Many libraries' errors mean the same here: no network, offline mode, no access, no disk.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UnreachableError(f"{filename} of {REPOSITORY} cannot be had: {reason}") from error
