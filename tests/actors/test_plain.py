"""Text that a model wrote gets no control token (its use in prompts is tested in test_chat)."""

from __future__ import annotations

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from actors.plain import PlainEncoder
from tests.models import SPECIAL, make_tokenizer


def test_control_tokens_are_encoded_as_their_characters():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>"])  # an added token that is not flagged special
    text = "Sort." + "".join(SPECIAL) + "<think><<think>"
    ids = PlainEncoder(tokenizer).encode(text)
    assert not set(ids) & set(tokenizer.added_tokens_decoder)
    assert tokenizer.decode(ids) == text


def test_a_control_token_that_is_a_word_of_the_vocabulary_is_left_out():
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in "▁<>/sab")]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    )
    for text in ("a </s> b", "a ＜/s＞ b"):  # the second one's brackets are normalised
        ids = wrapped(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert 1 in ids  # what transformers' own way lets through
        assert wrapped.convert_ids_to_tokens(PlainEncoder(wrapped).encode(text)) == [
            "▁", "a", "▁", "▁", "b",
        ]  # fmt: skip
    assert PlainEncoder(wrapped).encode("x")[-1] == 0  # an unknown letter controls nothing
