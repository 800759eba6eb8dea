"""Where a checkpoint's tensors lie in an engine's layout, and what vLLM asks of its engine."""

from __future__ import annotations

import inspect
from typing import ClassVar

import pytest
import torch
from torch import nn

from actors.transfer import ObjectStoreEngine, checkpoint_tensor


class Fused(nn.Module):
    """Three row blocks in one weight, as vLLM fuses q, k and v."""

    output_sizes = (4, 2, 2)

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(float(elements)).view(-1, 3))


class Layer(nn.Module):
    packed_modules_mapping: ClassVar = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"qkv_proj": Fused(elements), "norm": nn.LayerNorm(3)})


def test_a_part_of_a_fused_layer_is_its_rows():
    model = Layer(24)
    whole = model.get_parameter("attention.qkv_proj.weight")
    found = [checkpoint_tensor(model, f"attention.{part}_proj.weight") for part in "qkv"]
    assert all(tensor is not None for tensor in found)
    assert torch.equal(torch.cat([t for t in found if t is not None]), whole)
    assert [len(t) for t in found if t is not None] == [4, 2, 2]


def test_a_packed_or_unknown_tensor_is_not_found():
    assert checkpoint_tensor(Layer(0), "attention.q_proj.weight") is None
    assert checkpoint_tensor(Layer(24), "attention.o_proj.weight") is None
    assert checkpoint_tensor(Layer(24), "attention.norm.weight") is not None


def test_an_engine_can_be_made_under_every_vllm():
    assert not inspect.isabstract(ObjectStoreEngine)
    # 0.25 asks for a sending end too, of which later ones know nothing.
    with pytest.raises(NotImplementedError, match="the learner's publisher sends"):
        ObjectStoreEngine.trainer_send_weights(iter(()), {})
