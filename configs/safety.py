"""Configuration of the safety classifier, the last check of the admission gate."""

from __future__ import annotations

from pydantic import Field

from configs.base import Config, Dtype
from configs.fleets import FleetConfig


class SafetyConfig(Config):
    """A sequence classifier that turns away hazardous or infeasible queries of the Challenger.

    It judges a query's bare text, without a chat template. What it cannot decide on (its
    probabilities are NaN) is rejected too, as `unsafe_undecided`.
    """

    model: str = Field(min_length=1)
    """Folder or hub id of any Hugging Face sequence classifier with named labels."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    trust_remote_code: bool = False
    """Run model code that comes with the checkpoint."""
    labels: list[str] = Field(min_length=1)
    """The labels that reject a query, by their names in the model's `id2label`."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """A query is rejected where its probabilities of `labels` sum to this or more."""
    dtype: Dtype = "float32"
    """Weights and activations. In bfloat16 a query near `threshold` may be judged otherwise beside
    other queries: rounding depends on the batch."""
    batch: int = Field(default=16, ge=1)
    """Most windows of text that are classified at once."""
    max_tokens: int = Field(default=512, ge=16)
    """Tokens of one window, the model's control tokens included. A longer query is read in several
    windows, and the most dangerous one counts: a hazard could hide behind a cut."""
    fleet: FleetConfig = FleetConfig()
    """Its actors, on CPU unless `fleet.gpus` is above 0."""
