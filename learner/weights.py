"""The policy's tensors by their Hugging Face names, gathered a group at a time.

Under ZeRO-3 no rank holds the whole model: parameters are gathered in groups of bounded size,
every rank takes part, and only the sender keeps copies. Tied embeddings appear once, as
`model.named_parameters()` has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch


def tensor_sizes(model: torch.nn.Module) -> dict[str, int]:
    """Return the number of elements of each tensor, sharded or not."""
    return {name: _numel(parameter) for name, parameter in model.named_parameters()}


def tensor_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the full shape of each tensor, sharded or not."""
    return {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in model.named_parameters()
    }


def gathered(
    model: torch.nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    group_bytes: int,
    keep: bool,
    names: frozenset[str] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, copy in `dtype` on `device`) of each tensor, or of those in `names`.

    A collective under ZeRO-3: every rank must exhaust it. Ranks with `keep` False yield nothing.
    """
    chosen = [(n, p) for n, p in model.named_parameters() if names is None or n in names]
    for group in _groups(chosen, group_bytes, dtype):
        copies: list[tuple[str, torch.Tensor]] = []
        with _whole([parameter for _, parameter in group]):
            if keep:
                copies = [
                    (name, parameter.detach().to(device=device, dtype=dtype, copy=True))
                    for name, parameter in group
                ]
        yield from copies


def _whole(parameters: list[torch.nn.Parameter]) -> AbstractContextManager[object]:
    if not hasattr(parameters[0], "ds_id"):
        return nullcontext()
    import deepspeed  # noqa: PLC0415 (heavy, and only there under ZeRO-3)

    return deepspeed.zero.GatheredParameters(parameters)


def _groups(
    parameters: list[tuple[str, torch.nn.Parameter]], group_bytes: int, dtype: torch.dtype
) -> Iterator[list[tuple[str, torch.nn.Parameter]]]:
    group: list[tuple[str, torch.nn.Parameter]] = []
    size = 0
    for name, parameter in parameters:
        added = _numel(parameter) * dtype.itemsize
        if group and size + added > group_bytes:
            yield group
            group, size = [], 0
        group.append((name, parameter))
        size += added
    if group:
        yield group


def _numel(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
