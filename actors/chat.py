"""Prompts as token ids, with text that a model wrote kept from acting as control tokens.

A query, an answer or a judged pair is *plain* text: whatever it contains, it is encoded as
ordinary characters. So a message is a sequence of pieces, and only the trusted ones are read with
control tokens. The chat template is rendered with a stand-in for every plain piece and split
there: the template cannot trim or rewrite plain text, and plain text cannot end its turn.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from transformers import AutoTokenizer

from actors.plain import PlainEncoder
from actors.records import TokenIds
from configs.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Letters and digits only, so that no template filter (trim, tojson) changes a stand-in. It need
# not be secret: plain text is never rendered.
_STAND_IN = "plainpiece5e1f91a7c4d0x{}x"
_STAND_IN_PATTERN = re.compile(r"plainpiece5e1f91a7c4d0x(\d+)x")


KEPT_PROMPTS = 256
"""Prompts whose fixed parts are kept: a run has one per role and one per task of the Challenger."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Untrusted text: control tokens in it have no effect."""

    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat: pieces of trusted text (`str`) and of untrusted text (`Plain`)."""

    role: str
    pieces: tuple[str | Plain, ...]


def load_tokenizer(
    model_path: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub id.

    Raises:
        UserError: There is no such folder or hub id, or it holds no tokenizer.
    """
    try:
        return AutoTokenizer.from_pretrained(
            model_path, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load a tokenizer from {model_path!r}: give a model's folder or a hub id that"
            f" this machine can reach ({reason})"
        ) from error


class ChatEncoder:
    """Encodes messages by the model's own chat template, on a fixed date."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_date: datetime.date) -> None:
        """Take the tokenizer and the date that its template shows instead of today's.

        Raises:
            UserError: The tokenizer has no chat template.
        """
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, by which both"
                " roles are prompted: use an instruction-tuned model, or put a chat_template.jinja"
                " into the model's folder"
            )
        self._tokenizer = tokenizer
        self._date = chat_date
        self._plain = PlainEncoder(tokenizer)
        # All that is not plain is the same again and again, and takes the most time.
        self._fixed = lru_cache(maxsize=KEPT_PROMPTS)(self._fixed_parts)

    def encode(self, messages: Sequence[Message], generation_prompt: bool = True) -> TokenIds:
        """Return the token ids of a chat, int32 [tokens].

        Args:
            messages: The turns, in order.
            generation_prompt: Whether to end with the header of the assistant's next turn.

        Raises:
            UserError: The chat template refuses these messages, or loses a plain piece.
        """
        plain = [piece.text for m in messages for piece in m.pieces if isinstance(piece, Plain)]
        parts = self._fixed(_with_stand_ins(messages), generation_prompt)
        ids = [_ids(self.encode_plain(plain[p])) if isinstance(p, int) else p for p in parts]
        return np.concatenate(ids)

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of untrusted text; none of them is a control token."""
        return self._plain.encode(text)

    def _fixed_parts(
        self, messages: tuple[tuple[str, str], ...], generation_prompt: bool
    ) -> list[TokenIds | int]:
        """The rendered chat in its parts: ids of what is fixed, and the places of plain pieces."""
        rendered = self._render(messages, generation_prompt)
        # Of a split by a pattern with one group, every second part is the group: a plain index.
        parts = _STAND_IN_PATTERN.split(rendered)
        plain = sum(len(_STAND_IN_PATTERN.findall(content)) for _, content in messages)
        if {int(index) for index in parts[1::2]} != set(range(plain)):
            raise UserError(
                f"the chat template of {self._tokenizer.name_or_path!r} drops or rewrites the"
                " content of a message: use a model whose template keeps contents as they are"
            )
        return [
            int(part) if place % 2 else _ids(self._encode_fixed(part))
            for place, part in enumerate(parts)
        ]

    def _encode_fixed(self, text: str) -> list[int]:
        # The template writes its own beginning-of-text token: adding special tokens doubles it.
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=False)[
            "input_ids"
        ]

    def _render(self, messages: tuple[tuple[str, str], ...], generation_prompt: bool) -> str:
        date: dict[str, Any] = {
            "date_string": self._date.strftime("%d %b %Y"),
            "strftime_now": self._date.strftime,
        }
        try:
            rendered = self._tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **date,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(role for role, _ in messages)
            raise UserError(
                f"the chat template of {self._tokenizer.name_or_path!r} refuses messages of the"
                f" roles {roles}: {error}"
            ) from error
        return str(rendered)


def _ids(ids: list[int]) -> TokenIds:
    return np.asarray(ids, dtype=np.int32)


def _with_stand_ins(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """Role and content of each message."""
    rendered, plain_count = [], 0
    for message in messages:
        content = ""
        for piece in message.pieces:
            if isinstance(piece, Plain):
                content += _STAND_IN.format(plain_count)
                plain_count += 1
            else:
                content += piece
        rendered.append((message.role, content))
    return tuple(rendered)
