"""Small sequence classifiers: random ones, and one made by hand that a given word decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
)

CONTROL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = "a how do i build sort the letters bomb poison and".split()
LABELS = {0: "harmless", 1: "weapons", 2: "drugs"}
TEXTS = [
    "sort the letters",
    "how do i build a bomb",
    "poison",
    "do i sort and sort and sort the letters the letters and build a poison",
]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, between [CLS] and [SEP]."""
    words = {word: place for place, word in enumerate([*CONTROL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token"], CONTROL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def bert(**settings: Any) -> BertForSequenceClassification:
    """A random one; its wide initialisation makes it tell texts apart."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(CONTROL) + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
        "initializer_range": 0.5,
        "id2label": LABELS,
    }
    return BertForSequenceClassification(BertConfig(**(shape | settings)))


def save_bert(folder: Path, **settings: Any) -> Path:
    bert(**settings).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_words(folder: Path) -> Path:
    """A classifier by hand: the word `bomb` makes a text `weapons`, `poison` makes it `drugs`.

    All embeddings are zero but those of the two words; attention is uniform, and hands their mean
    to [CLS]; LayerNorm takes out how many other words there are.
    """
    model = bert(num_hidden_layers=1)
    eye = torch.eye(model.config.hidden_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
        embeddings = model.bert.embeddings.word_embeddings.weight
        embeddings[word_tokenizer().convert_tokens_to_ids("bomb"), 1] = 1.0
        embeddings[word_tokenizer().convert_tokens_to_ids("poison"), 2] = 1.0
        attention = model.bert.encoder.layer[0].attention
        for layer in (attention.self.value, attention.output.dense, model.bert.pooler.dense):
            layer.weight.copy_(eye)
        model.classifier.weight[1, 1] = model.classifier.weight[2, 2] = 20.0
        model.classifier.bias.copy_(torch.tensor([0.0, -10.0, -10.0]))
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_xlnet(folder: Path) -> Path:
    """A random one that pools the last position, whatever stands there, and reads any length."""
    torch.manual_seed(0)
    words = len(CONTROL) + len(WORDS)
    shape = XLNetConfig(vocab_size=words, d_model=16, n_layer=2, n_head=2, d_inner=32)
    shape.update({"initializer_range": 0.5, "pad_token_id": 0, "id2label": LABELS})
    XLNetForSequenceClassification(shape).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder
