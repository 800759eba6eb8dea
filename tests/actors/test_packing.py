"""Packed buffers carry every tensor bit by bit, within their size."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from actors.packing import PackedBuffer, checksum, pack, unpack

TENSORS = {
    "matrix": torch.randn(3, 5),
    "half": torch.randn(7).bfloat16(),
    "transposed": torch.randn(4, 6).t(),
    "scalar": torch.tensor(2.0),
    "large": torch.randn(100),
}


def packed(buffer_bytes: int) -> list[PackedBuffer]:
    return list(pack(TENSORS.items(), buffer_bytes))


def test_what_is_packed_comes_out_bit_by_bit_and_in_order():
    tensors = [pair for buffer in packed(100) for pair in unpack(buffer)]
    assert [name for name, _ in tensors] == list(TENSORS)
    for name, tensor in tensors:
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_buffers_keep_to_their_size_but_for_a_tensor_larger_than_one():
    sizes = [len(buffer["data"]) for buffer in packed(100)]
    assert len(sizes) > 2
    assert all(size <= 100 for size in sizes[:-1])
    assert packed(100)[-1]["names"] == ["large"]
    assert len(packed(10_000)) == 1


def test_a_buffer_is_a_copy():
    tensor = torch.zeros(4)
    (buffer,) = pack([("w", tensor)], 100)
    tensor += 1
    assert dict(unpack(buffer))["w"].sum() == 0


def test_a_read_only_buffer_unpacks_without_a_warning():
    (buffer,) = packed(10_000)
    buffer["data"].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(dict(unpack(buffer))["matrix"], TENSORS["matrix"])


def test_checksum_sees_one_bit_and_not_the_strides():
    tensor = torch.randn(4, 6)
    changed = tensor.clone()
    changed.view(torch.int32)[2, 3] ^= 1
    assert checksum(changed) != checksum(tensor)
    assert checksum(tensor.t().contiguous().t()) == checksum(tensor)
    assert checksum(tensor.bfloat16()) != checksum(tensor)


def test_no_tensors_make_no_buffer():
    assert list(pack([], 100)) == []
    assert np.dtype(np.uint8) == packed(100)[0]["data"].dtype
