"""What evaluation asks of a policy: completions for prompts, wherever they are made."""

from __future__ import annotations

from typing import Protocol

from actors.records import Completion, GenerationRequest


class Generator(Protocol):
    """Samples completions; a rollout fleet, one engine, or a fake in a test."""

    async def generate(self, requests: list[GenerationRequest]) -> list[Completion]:
        """Return one completion per request, in their order."""
        ...
