"""Text that a model wrote as token ids: whatever it contains, none of them is a control token."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PlainEncoder:
    """Encodes untrusted text as ordinary characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._control_starts = _starts_of_control_words(tokenizer)
        unknown = tokenizer.unk_token_id
        self._control_ids = {one for one in tokenizer.all_special_ids if one != unknown}

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; none of them is a control token."""
        cuts = [0, *(match.end() + 1 for match in self._control_starts.finditer(text)), len(text)]
        ids: list[int] = []
        for start, end in pairwise(cuts):
            ids += self._tokenizer(
                text[start:end], add_special_tokens=False, split_special_tokens=True
            )["input_ids"]
        # Some vocabularies (XLM-R's) hold `</s>` as a word too, which nothing splits: left out.
        return [one for one in ids if one not in self._control_ids]


def _starts_of_control_words(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Match, without width, wherever an added token that is not flagged special begins.

    `split_special_tokens` leaves those whole (`<tool_call>`, `<think>` of some models). Cut after
    their first character, they are ordinary text too.
    """
    tokens = tokenizer.added_tokens_decoder.values()
    words = [t.content for t in tokens if not t.special and len(t.content) > 1]
    return re.compile("(?=" + "|".join(map(re.escape, words)) + ")" if words else r"(?!)")
