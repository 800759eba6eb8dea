"""Named tensors packed into a few large byte buffers, and exact checksums of tensors.

Weights travel as a stream of buffers, never as one call per parameter. A buffer is a plain
dictionary around one numpy array, so that Ray's object store ships it without copying and vLLM
takes it as a weight-update message.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT = 16
"""Every tensor starts at a multiple of this many bytes, so that its bytes can be viewed in place
as any dtype."""

NamedTensor = tuple[str, torch.Tensor]


class PackedBuffer(TypedDict):
    """Several tensors in one array of bytes; the i-th entries of the lists describe tensor i."""

    names: list[str]
    dtypes: list[str]
    """As torch prints them after `torch.`: "float32", "bfloat16"."""
    shapes: list[list[int]]
    offsets: list[int]
    """First byte of each tensor in `data`."""
    data: npt.NDArray[np.uint8]


def pack(tensors: Iterable[NamedTensor], buffer_bytes: int) -> Iterator[PackedBuffer]:
    """Yield buffers of at most `buffer_bytes` that hold all tensors in their order.

    A tensor is never split: one larger than `buffer_bytes` gets a buffer of its own. Tensors are
    taken from the iterable as they are needed, so at most one buffer's worth is held. The bytes
    are copied: what happens to a tensor after its buffer is out does not matter.
    """
    waiting: list[NamedTensor] = []
    size = 0
    for name, tensor in tensors:
        added = _aligned(tensor.nbytes)
        if waiting and size + added > buffer_bytes:
            yield _fill(waiting, size)
            waiting, size = [], 0
        waiting.append((name, tensor))
        size += added
    if waiting:
        yield _fill(waiting, size)


def unpack(buffer: PackedBuffer) -> Iterator[NamedTensor]:
    """Yield the tensors of a buffer, as views of its bytes. They must not be written to."""
    with warnings.catch_warnings():
        # A buffer out of the object store is read-only, which torch warns of.
        warnings.filterwarnings("ignore", message="The given (buffer|NumPy array) is not writable")
        data_bytes = torch.from_numpy(buffer["data"])
    fields = zip(
        buffer["names"], buffer["dtypes"], buffer["shapes"], buffer["offsets"], strict=True
    )
    for name, dtype_name, shape, offset in fields:
        dtype: torch.dtype = getattr(torch, dtype_name)
        size = math.prod(shape) * dtype.itemsize
        yield name, data_bytes[offset : offset + size].view(dtype).view(shape)


def checksum(tensor: torch.Tensor) -> int:
    """Return the CRC-32 of a tensor's elements in row-major order, as they lie in memory."""
    return zlib.crc32(_bytes_of(tensor).numpy().data)


def _fill(tensors: list[NamedTensor], size: int) -> PackedBuffer:
    data = np.zeros(size, dtype=np.uint8)
    target = torch.from_numpy(data)
    offsets, end = [], 0
    for _, tensor in tensors:
        offsets.append(end)
        target[end : end + tensor.nbytes].copy_(_bytes_of(tensor))
        end += _aligned(tensor.nbytes)
    return PackedBuffer(
        names=[name for name, _ in tensors],
        dtypes=[str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        shapes=[list(tensor.shape) for _, tensor in tensors],
        offsets=offsets,
        data=data,
    )


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


def _aligned(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT
