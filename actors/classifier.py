"""The safety classifier: which label, if any, a text is rejected for.

Any Hugging Face sequence classifier, with its logits read as transformers' own text-classification
pipeline reads them: a sigmoid of each label of a `multi_label_classification` and of a single
label, a softmax over several labels otherwise. A `regression` has no probabilities and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from actors.chat import load_tokenizer
from actors.plain import PlainEncoder
from actors.vllm_start import check_model
from configs.errors import UserError
from configs.safety import SafetyConfig

KEY = "gate.safety"
UNDECIDED = "undecided"
"""The label of a text whose probabilities are NaN."""
PROBE = "a"
"""A text that every tokenizer knows; its control tokens are found around it."""

Window = list[int]
"""Token ids [tokens] of a text or of a part of it, the model's control tokens around them."""


class SafetyInput:
    """A classifier's configuration, and texts as it reads them; its weights are not read."""

    def __init__(self, safety: SafetyConfig) -> None:
        """Read the model's configuration and tokenizer.

        Raises:
            UserError: There is no such model, it is no classifier, it has no such labels or no
                probabilities, or `max_tokens` is no length that it can read.
        """
        config = _classifier_config(safety)
        self.names_L = _label_names(config)
        self.sigmoid = _is_sigmoid(config)
        _check_labels(safety, self.names_L, self.sigmoid)
        self.pad_token_id: int | None = config.get_text_config().pad_token_id
        tokenizer = _tokenizer(safety)
        _check_length(safety, _limit(config, tokenizer))
        self.padding_side: str = tokenizer.padding_side
        self._plain = PlainEncoder(tokenizer)
        self._before, self._after = _control_ids(tokenizer)
        self._room = safety.max_tokens - len(self._before) - len(self._after)

    def windows(self, text: str) -> list[Window]:
        """Return the windows that a text is read in, in order; none for a text without tokens."""
        ids = self._plain.encode(text)
        parts = [ids[start : start + self._room] for start in range(0, len(ids), self._room)]
        return [[*self._before, *part, *self._after] for part in parts]


class SafetyClassifier:
    """The model in this process. Not thread-safe."""

    def __init__(self, safety: SafetyConfig, device: str) -> None:
        """Load the model onto `device`.

        Raises:
            UserError: As `SafetyInput` does, or the weights cannot be loaded or are not all there.
        """
        self._safety = safety
        self._device = device
        self._input = SafetyInput(safety)
        self._model = _loaded(safety, device)
        # A model that knows no padding token cannot tell padding from text.
        self._batch = 1 if self._input.pad_token_id is None else safety.batch

    def classify(self, texts: Sequence[str]) -> list[str | None]:
        """Return the label that each text is rejected for, None where it is safe."""
        rejecting = set(self._safety.labels)
        return [
            verdict(p_WL, self._input.names_L, rejecting, self._safety.threshold)
            for p_WL in self.probabilities(texts)
        ]

    def probabilities(self, texts: Sequence[str]) -> list[npt.NDArray[np.float64]]:
        """Return the labels' probabilities [windows, labels] of each text."""
        windows = [self._input.windows(text) for text in texts]
        rows = iter(self._rows([window for own in windows for window in own]))
        shape = (-1, len(self._input.names_L))
        return [np.reshape(list(islice(rows, len(own))), shape) for own in windows]

    def _rows(self, windows: Sequence[Window]) -> list[npt.NDArray[np.float64]]:
        rows: list[npt.NDArray[np.float64]] = []
        for start in range(0, len(windows), self._batch):
            logits_WL = self._logits(windows[start : start + self._batch]).float().cpu().double()
            p_WL = logits_WL.sigmoid() if self._input.sigmoid else logits_WL.softmax(-1)
            rows.extend(p_WL.numpy())
        return rows

    @torch.inference_mode()
    def _logits(self, windows: Sequence[Window]) -> torch.Tensor:
        ids = [torch.tensor(window) for window in windows]
        # The model's padding token, not the tokenizer's: decoders pool the last token before it.
        ids_WT = self._padded(ids, self._input.pad_token_id or 0)
        mask_WT = self._padded([torch.ones_like(one) for one in ids], 0)
        return self._model(input_ids=ids_WT, attention_mask=mask_WT).logits

    def _padded(self, rows: list[torch.Tensor], value: int) -> torch.Tensor:
        side = self._input.padding_side
        padded = pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)
        return padded.to(self._device)


def verdict(
    probabilities_WL: npt.NDArray[np.float64],
    names_L: Sequence[str],
    rejecting: Set[str],
    threshold: float,
) -> str | None:
    """Return the label that a text is rejected for, None where it is safe.

    Its most dangerous window counts: where the probabilities of the rejecting labels sum to the
    threshold there, the most probable of them is returned. A text that no probability is known
    of is rejected too, as `undecided`: what has not been judged is not safe.

    Args:
        probabilities_WL: Of each window and label.
        names_L: The labels' names.
        rejecting: The names of those that reject.
        threshold: Least sum that rejects.
    """
    if not probabilities_WL.size or np.isnan(probabilities_WL).any():
        return UNDECIDED
    rejects_L = np.array([name in rejecting for name in names_L])
    dangers_WL = np.where(rejects_L, probabilities_WL, 0.0)
    worst_L = dangers_WL[dangers_WL.sum(axis=1).argmax()]
    return names_L[int(worst_L.argmax())] if worst_L.sum() >= threshold else None


def _classifier_config(safety: SafetyConfig) -> PretrainedConfig:
    """Return the model's configuration; UserError where it is none of a usable classifier."""
    key = f"{KEY}.model"
    check_model(safety.model, safety.revision, safety.trust_remote_code, key)
    config = AutoConfig.from_pretrained(
        safety.model, revision=safety.revision, trust_remote_code=safety.trust_remote_code
    )
    architectures = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise UserError(
            f"{key}: {safety.model!r} is {' or '.join(architectures) or 'of no named architecture'}"
            ", not a sequence classifier: name one"
        )
    if config.problem_type == "regression":
        raise UserError(
            f"{key}: {safety.model!r} is a regression (problem_type in its config.json), whose"
            " output is no probability: name a classifier"
        )
    return config


def _label_names(config: PretrainedConfig) -> list[str]:
    named = {int(column): name for column, name in (config.id2label or {}).items()}
    return [named[column] for column in sorted(named)]


def _is_sigmoid(config: PretrainedConfig) -> bool:
    return config.problem_type == "multi_label_classification" or config.num_labels == 1


def _check_labels(safety: SafetyConfig, names_L: Sequence[str], sigmoid: bool) -> None:
    """Raise UserError where a label is none of the model's, or nothing could ever be admitted."""
    unknown = [label for label in safety.labels if label not in names_L]
    if unknown:
        raise UserError(
            f"{KEY}.labels: {safety.model!r} has no label {unknown[0]!r}; its labels are"
            f" {', '.join(map(repr, names_L))}"
        )
    if not sigmoid and set(names_L) <= set(safety.labels):
        raise UserError(
            f"{KEY}.labels names every label of {safety.model!r}, whose probabilities sum to 1, so"
            " that no query would pass: leave out those of harmless text"
        )


def _tokenizer(safety: SafetyConfig) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; UserError where it has none that knows words."""
    try:
        tokenizer = load_tokenizer(safety.model, safety.revision, safety.trust_remote_code)
    except UserError as error:
        raise UserError(f"{KEY}.model: {error}") from error
    known = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    if not known or tokenizer.unk_token_id in known:
        # Where its files are missing, transformers makes an empty one, and every text is the same.
        raise UserError(
            f"{KEY}.model: the tokenizer of {safety.model!r} does not know the letter {PROBE!r}:"
            " put its files beside the model, or name a whole model"
        )
    return tokenizer


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[Window, Window]:
    """Return the control tokens that the tokenizer puts before and after a text."""
    bare = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def _limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the model reads at most; a huge number where nothing says."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    # XLNet says -1 for any number.
    return min(tokenizer.model_max_length, positions if positions > 0 else 2**31)


def _check_length(safety: SafetyConfig, limit: int) -> None:
    if safety.max_tokens > limit:
        raise UserError(
            f"{KEY}.max_tokens {safety.max_tokens} is more than {safety.model!r} reads: set it to"
            f" {limit} or less"
        )


def _loaded(safety: SafetyConfig, device: str) -> PreTrainedModel:
    """Return the model on `device`; UserError where it cannot be loaded whole."""
    key = f"{KEY}.model"
    try:
        model, told = AutoModelForSequenceClassification.from_pretrained(
            safety.model,
            revision=safety.revision,
            trust_remote_code=safety.trust_remote_code,
            dtype=getattr(torch, safety.dtype),
            output_loading_info=True,
        )
        model = model.to(device)
    except Exception as error:
        # Whatever a checkpoint lacks is its user's matter.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{key}: {safety.model!r} cannot be loaded: name a whole sequence classifier ({reason})"
        ) from error
    if told["missing_keys"]:
        # transformers would make them up, and say so only in a warning.
        raise UserError(
            f"{key}: {safety.model!r} has no weights {', '.join(sorted(told['missing_keys']))}, and"
            " what it says would be random: name a trained classifier"
        )
    model.config.use_cache = False  # of keys and values, in a decoder that decodes nothing here
    return model
