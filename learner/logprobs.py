"""Log-probabilities of completions under a Hugging Face model, without whole logits.

The hidden states of the predicted positions alone reach the output layer, a chunk of them at a
time, so that logits over the vocabulary exist for at most `chunk` tokens, forward and backward.
Rows are padded on the right, so that causal attention alone keeps padding out of every
completion: no attention mask is needed, and the fastest kernels can be used.

Axes: B rows, L tokens, T = L − 1 predicted positions, P predicted positions of all rows in the
mask, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch.utils.checkpoint import checkpoint

from configs.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNSUPPORTED = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""What some models do between output layer and logits; it would be left out here."""


class LogProbHead(torch.nn.Module):
    """The output layer together with softmax and gather, a chunk of positions at a time.

    Under ZeRO-3 it is a leaf module: its weight is gathered once for all chunks, however many a
    rank has. It uses the layer's weight and never calls the layer, whose own hooks would gather
    per chunk and hang ranks with different numbers of chunks.
    """

    def __init__(self, output_layer: torch.nn.Module, chunk: int) -> None:
        super().__init__()
        self.output_layer = output_layer
        self.chunk = chunk

    def forward(
        self, hidden_PD: torch.Tensor, targets_P: torch.Tensor, temperatures_P: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities [P] (with gradient) and entropies [P] (without), float32."""
        # One chunk fits by definition. More are recomputed one by one in the backward pass.
        recompute = torch.is_grad_enabled() and len(targets_P) > self.chunk
        chunks = zip(
            hidden_PD.split(self.chunk),
            targets_P.split(self.chunk),
            temperatures_P.split(self.chunk),
            strict=True,
        )
        pieces = [self._one_chunk(*chunk, recompute) for chunk in chunks]
        logprobs, entropies = zip(*pieces, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _one_chunk(
        self,
        hidden_CD: torch.Tensor,
        targets_C: torch.Tensor,
        temperatures_C: torch.Tensor,
        recompute: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layer: Any = self.output_layer  # a Linear, or what a model has in its place
        arguments = (hidden_CD, layer.weight, layer.bias, targets_C, temperatures_C)
        if not recompute:
            return _token_logprobs(*arguments)
        result: Any = checkpoint(_token_logprobs, *arguments, use_reentrant=False)
        return result


class ScoringModel(torch.nn.Module):
    """A causal language model whose forward pass returns log-probabilities of completions."""

    def __init__(self, model: PreTrainedModel, chunk: int) -> None:
        super().__init__()
        for setting in UNSUPPORTED:
            if getattr(model.config, setting, None) not in (None, 1.0):
                raise UserError(
                    f"the model at model.path ({model.config.model_type}) sets {setting}, which"
                    " the learner does not apply: use a model without it"
                )
        output_layer = model.get_output_embeddings()
        if output_layer is None:
            raise UserError("the model at model.path has no output layer: it is no causal LM")
        self.model = model
        self.head = LogProbHead(output_layer, chunk)

    def forward(
        self, tokens_BL: torch.Tensor, mask_BT: torch.Tensor, temperatures_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and (detached) entropies of the masked positions.

        Both float32 [B, T], zero outside `mask_BT`; position t predicts token t + 1. Logits are
        divided by the row's temperature first.
        """
        decoder = self.model.get_decoder()
        hidden_BLD = decoder(input_ids=tokens_BL, use_cache=False).last_hidden_state
        temperatures_P = temperatures_B[:, None].expand_as(mask_BT)[mask_BT]
        logprobs_P, entropy_P = self.head(
            hidden_BLD[:, :-1][mask_BT], tokens_BL[:, 1:][mask_BT], temperatures_P
        )
        return _scattered(logprobs_P, mask_BT), _scattered(entropy_P, mask_BT)


def _token_logprobs(
    hidden_CD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_C: torch.Tensor,
    temperatures_C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_CV = F.linear(hidden_CD, weight_VD, bias_V).float() / temperatures_C[:, None]
    total_C = logits_CV.logsumexp(-1)
    logprobs_C = logits_CV.gather(-1, targets_C[:, None]).squeeze(-1) - total_C
    with torch.no_grad():
        entropy_C = total_C - ((logits_CV - total_C[:, None]).exp() * logits_CV).sum(-1)
    return logprobs_C, entropy_C


def _scattered(values_P: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    values_BT = values_P.new_zeros(mask_BT.shape)
    return values_BT.masked_scatter(mask_BT, values_P)
