"""The tokenizer of the playground: one token per word of the world, bytes for everything else.

Invariant: white space always separates tokens and is never part of one. So a prompt encoded piece
by piece has the same token ids as the whole, decoding gives back any text written with single
spaces, and a text from outside the world still decodes, from its bytes. Control tokens live
outside the word vocabulary: a text encoded as plain text can never contain one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from playground import language, verdicts

PROMPTS = Path(__file__).parent / "prompts"
BEGIN, END, USER, ASSISTANT, PAD = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"
UNKNOWN = "<|unknown|>"
CONTEXT = 512
MAX_WORD_BYTES = 10_000
CONTINUED = "▁"  # outside the byte alphabet, so that no text spells a continued piece
SENTINEL = "\ue000"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def prompt_text(name: str) -> str:
    """One of the prompt files, without its last newline."""
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").strip()


def world_words() -> list[str]:
    """Every word of the world's language and prompts, in a fixed order."""
    texts = [prompt_text("challenger"), prompt_text("quality"), *verdicts.CHATTER]
    texts += [part for challenge in language.CHALLENGES for part in challenge[:2]]
    texts += [*language.LETTERS, *language.WORDS, *language.ORDINALS, "largest smallest , plus"]
    texts += sorted(verdicts.NUMBER_WORDS)
    texts += [verdicts.write((1, 1, 1, 1, 1, 1, 1)), verdicts.write((0, 0, 0, 0, 0, 0, 0))]
    texts += [verdicts.write((1, 1, 1, 0, 0, 0, 0)), "0 1 2 3 4 5 6 7 8 9"]
    return list(dict.fromkeys(word for text in texts for word in text.split() if "{{" not in word))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template (roles user and assistant)."""
    byte_pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [UNKNOWN, *world_words(), *byte_pieces, *(CONTINUED + piece for piece in byte_pieces)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(
        models.WordPiece(
            vocabulary,
            unk_token=UNKNOWN,
            max_input_chars_per_word=MAX_WORD_BYTES,
            continuing_subword_prefix=CONTINUED,
        )
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # The byte decoder knows the space only under its byte name.
    core.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix=CONTINUED, cleanup=False),
            decoders.Replace(" ", "Ġ"),
            decoders.ByteLevel(),
        ]
    )
    core.add_special_tokens(
        [AddedToken(token, special=True) for token in (BEGIN, END, USER, ASSISTANT, PAD)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def control_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a control token."""
    return tokenizer.get_added_vocab()[token]


def encode_plain(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts in which control tokens have no effect."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    return encoded["input_ids"]  # pyright: ignore[reportReturnType]


class PromptEncoder:
    """A prompt with `{{slots}}` as the one user message of a chat, ready to be filled with text.

    The fixed pieces are encoded once with control tokens in force, the slots' contents as plain
    text, each piece by itself.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: str) -> None:
        self.tokenizer = tokenizer
        self.slots: list[str] = re.findall(r"\{\{(\w+)\}\}", prompt)
        message = re.sub(r"\{\{\w+\}\}", SENTINEL, prompt)
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
        self.pieces: list[list[int]] = [
            tokenizer(piece, add_special_tokens=False)["input_ids"]  # pyright: ignore
            for piece in str(rendered).split(SENTINEL)
        ]

    def encode(self, contents: Iterable[Mapping[str, str]]) -> list[list[int]]:
        """Token ids of the prompt for each set of slot contents."""
        rows = list(contents)
        flat = encode_plain(self.tokenizer, [row[slot] for row in rows for slot in self.slots])
        filled = iter(flat)
        return [self._joined([next(filled) for _ in self.slots]) for _ in rows]

    def _joined(self, contents: list[list[int]]) -> list[int]:
        ids = list(self.pieces[0])
        for content, piece in zip(contents, self.pieces[1:], strict=True):
            ids += content + piece
        return ids
