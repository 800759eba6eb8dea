"""Log-probabilities against Hugging Face's logits; padding, temperature and chunks."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from configs.errors import UserError
from learner.logprobs import ScoringModel
from tests.models import small_config


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request, tiny_model):
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model(request.param), dtype=torch.float32)
    return loaded.train()


def random_batch(rows=3, length=12):
    generator = torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(6, 300, (rows, length), generator=generator)
    mask_BT = torch.zeros(rows, length - 1, dtype=torch.bool)
    for b in range(rows):
        mask_BT[b, 2 + b : length - 1 - b] = True
    return tokens_BL, mask_BT, torch.linspace(0.5, 1.5, rows)


def by_hugging_face(model, tokens_BL, mask_BT, temperatures_B):
    logits = model(tokens_BL).logits[:, :-1] / temperatures_B[:, None, None]
    normalised = logits.log_softmax(-1)
    entropy = -(normalised.exp() * normalised).sum(-1)
    picked = normalised.gather(-1, tokens_BL[:, 1:, None]).squeeze(-1)
    return picked * mask_BT, entropy * mask_BT


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_equal_to_hugging_face_with_gradient(model, chunk):
    batch = random_batch()
    logprobs, entropy = ScoringModel(model, chunk)(*batch)
    right, right_entropy = by_hugging_face(model, *batch)
    torch.testing.assert_close(logprobs, right, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, right_entropy.detach(), atol=1e-5, rtol=1e-4)
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(model.parameters())
    got = torch.autograd.grad((logprobs * weights).sum(), parameters)
    expected = torch.autograd.grad((right * weights).sum(), parameters)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_padding_on_the_right_changes_nothing(model):
    tokens_BL, mask_BT, temperatures_B = random_batch()
    scoring = ScoringModel(model, 4)
    padded = torch.nn.functional.pad(tokens_BL, (0, 9), value=7)
    longer = torch.nn.functional.pad(mask_BT, (0, 9))
    alone, _ = scoring(tokens_BL, mask_BT, temperatures_B)
    beside, _ = scoring(padded, longer, temperatures_B)
    torch.testing.assert_close(beside[:, : alone.shape[1]], alone, atol=1e-6, rtol=1e-6)
    assert not beside[:, alone.shape[1] :].any()


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation's result held over the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocabulary,):
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return result


def test_no_tensor_over_the_vocabulary_is_larger_than_a_chunk(model):
    tokens_BL, mask_BT, temperatures_B = random_batch(rows=4, length=40)
    vocabulary = model.config.vocab_size
    assert mask_BT.sum() > 5 * 8
    scoring = ScoringModel(model, 8)
    with LargestTensor(vocabulary) as largest:
        logprobs, _ = scoring(tokens_BL, mask_BT, temperatures_B)
        logprobs.sum().backward()
    # hidden × vocabulary is the transposed weight.
    assert 0 < largest.rows <= max(8, model.config.hidden_size)
    saved: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scoring(tokens_BL, mask_BT, temperatures_B)
    over_vocabulary = [s for s in saved if s[-1:] == (vocabulary,) and s[0] != 64]
    assert not over_vocabulary, "logits are kept for the backward pass"


def test_models_that_change_their_logits_are_refused():
    from transformers import LlamaForCausalLM

    config = small_config(False)
    config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="final_logit_softcapping"):
        ScoringModel(LlamaForCausalLM(config), 8)
