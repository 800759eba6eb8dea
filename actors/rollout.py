"""The Ray actor around one policy engine: the Challenger and the Solver are played here.

It is an asyncio actor: calls overlap, and the engine batches them together.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from prometheus_client import Counter

from actors.logs import note
from actors.member import FleetMember, Post
from actors.policy import PolicyEngine
from actors.records import Completion, GenerationRequest, LogProbs, TokenIds
from configs.fleets import RolloutConfig

COMPLETIONS = Counter("selfplay_rollout_completions_total", "Sequences sampled by this engine.")
TOKENS = Counter("selfplay_rollout_tokens_total", "Tokens sampled by this engine.")


class RolloutActor(FleetMember):
    """A policy engine as a Ray actor; `ray.remote(RolloutActor)` makes it one.

    Errors of the engine's start leave the constructor; a `UserError` among them is one the user
    can put right.
    """

    def __init__(
        self,
        model_path: str,
        config: RolloutConfig,
        *,
        post: Post,
        transfer_backend: str | None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        colocated: bool = False,
    ) -> None:
        """Start the engine; it serves version 0 of the policy, the model as it is on disk.

        Args:
            model_path: Folder or hub id.
            config: The section `rollout`.
            post: Who it is, and where its metrics and its log go.
            transfer_backend: "object_store", "nccl" or "ipc"; None where the weights stay.
            revision: Of the hub repository.
            trust_remote_code: Run model code that comes with the checkpoint.
            colocated: Whether the engine gives up its GPU's memory while the learner learns.
        """
        super().__init__(post)
        self._engine = PolicyEngine(
            model_path,
            config,
            section="rollout",
            # For requests without a seed of their own. Were it fixed, a second engine and a
            # restarted one would repeat the first one's samples.
            seed=secrets.randbits(31),
            revision=revision,
            trust_remote_code=trust_remote_code,
            transfer_backend=transfer_backend,
            sleep_mode=colocated,
        )

    async def generate(self, requests: list[GenerationRequest]) -> list[Completion]:
        """Sample every request; return the completions in their order."""
        completions = await asyncio.wrap_future(self._engine.submit(requests))
        COMPLETIONS.inc(len(completions))
        TOKENS.inc(sum(len(completion.token_ids) for completion in completions))
        return completions

    async def init_transfer(self, init_info: dict[str, Any]) -> None:
        """Connect to the trainer."""
        await asyncio.wrap_future(self._engine.init_transfer(init_info))

    async def start_update(self) -> None:
        """Stop stepping and make ready for new weights."""
        await asyncio.wrap_future(self._engine.start_update())

    async def load_update(self, info: dict[str, Any]) -> None:
        """Load what one message of the transfer backend brings."""
        await asyncio.wrap_future(self._engine.load_update(info))

    async def finish_update(self, version: int) -> None:
        """Put the loaded weights to use as policy `version`, and go on stepping."""
        await asyncio.wrap_future(self._engine.finish_update(version))
        note(iteration=version, version=version)

    async def version(self) -> int:
        """Return the policy version that the engine serves; EngineDiedError where it is none."""
        self._engine.check_alive()
        return self._engine.version

    async def checksums(self, names: list[str]) -> dict[str, int]:
        """Return the CRC-32 of named tensors, for those names whose layout permits."""
        return await asyncio.wrap_future(self._engine.checksums(names))

    async def probe(self, token_ids: TokenIds) -> LogProbs:
        """Return the log-probabilities [tokens - 1] of tokens 1… of a sequence, temperature 1."""
        (logprobs,) = await asyncio.wrap_future(self._engine.probe([token_ids]))
        return logprobs

    async def sleep(self) -> None:
        """Give the GPU's memory back."""
        await asyncio.wrap_future(self._engine.sleep())

    async def wake(self) -> None:
        """Take the GPU's memory again."""
        await asyncio.wrap_future(self._engine.wake())

    async def describe(self) -> dict[str, Any]:
        """Return who and where this member is, and what it serves."""
        return await super().describe() | {"version": self._engine.version}

    async def stop(self) -> None:
        """Stop the engine; what is still pending fails."""
        await asyncio.to_thread(self._engine.close)
