"""The safety classifier equals a plain forward of transformers, and fails closed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.classifier import SafetyClassifier, SafetyInput, verdict
from configs.errors import UserError
from configs.safety import SafetyConfig
from tests.actors.classifiers import LABELS, TEXTS, save_bert, save_words, save_xlnet
from tests.models import make_tokenizer, save_causal_model, save_reward_model


def section(model: Path, **settings: Any) -> SafetyConfig:
    defaults = {"model": str(model), "labels": ["weapons", "drugs"], "max_tokens": 32}
    return SafetyConfig.model_validate(defaults | settings)


def classifier(model: Path, **settings: Any) -> SafetyClassifier:
    return SafetyClassifier(section(model, **settings), "cpu")


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_weights(folder: Path, **changed: torch.Tensor | None) -> None:
    """Replace tensors by name (with _ for a dot), or leave them out."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changed.items():
        tensors.pop(name.replace("_", ".", 1))
        if tensor is not None:
            tensors[name.replace("_", ".", 1)] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def random_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder: it reads no control tokens around a text, and pools the last token."""
    return save_reward_model(tmp_path_factory.mktemp("llama"), labels=3)


@pytest.fixture(scope="module")
def random_xlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_xlnet(tmp_path_factory.mktemp("xlnet"))


@pytest.fixture
def copied(random_bert: Path, tmp_path: Path) -> Path:
    """A classifier to be broken."""
    return Path(shutil.copytree(random_bert, tmp_path / "bert"))


@pytest.fixture(params=["bert", "llama"])
def random_model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"random_{request.param}")


def labels_of(folder: Path) -> list[str]:
    return list(json.loads((folder / "config.json").read_text())["id2label"].values())


def plain_logits(folder: Path, texts: Sequence[str]) -> list[torch.Tensor]:
    """The logits [labels] of each text by itself, as transformers alone computes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]


def test_softmax_of_several_labels_equals_a_plain_forward(random_model: Path):
    expected_NL = [logits.softmax(-1).numpy() for logits in plain_logits(random_model, TEXTS)]
    found = classifier(random_model, labels=labels_of(random_model)[:2], max_tokens=128)
    p_NL = np.concatenate(found.probabilities(TEXTS))
    assert np.ptp(expected_NL, axis=0).min() > 0.01  # the texts are told apart
    np.testing.assert_allclose(p_NL, expected_NL, atol=1e-5)
    np.testing.assert_allclose(p_NL.sum(1), 1)


def test_sigmoid_of_each_label_where_labels_do_not_exclude_each_other(copied: Path):
    change_config(copied, problem_type="multi_label_classification")
    expected_NL = [logits.sigmoid().numpy() for logits in plain_logits(copied, TEXTS)]
    p_NL = np.concatenate(classifier(copied, labels=list(LABELS.values())).probabilities(TEXTS))
    np.testing.assert_allclose(p_NL, expected_NL, atol=1e-5)
    assert np.abs(p_NL.sum(1) - 1).max() > 0.1


def test_sigmoid_of_a_single_label(tmp_path: Path):
    folder = save_bert(tmp_path, id2label={0: "hazard"})
    expected_N = [logits.sigmoid().item() for logits in plain_logits(folder, TEXTS)]
    found = classifier(folder, labels=["hazard"], threshold=0.5)
    np.testing.assert_allclose(np.concatenate(found.probabilities(TEXTS))[:, 0], expected_N, 1e-5)
    assert found.classify(TEXTS) == ["hazard" if p >= 0.5 else None for p in expected_N]


@pytest.mark.parametrize(
    ("kind", "side"), [("bert", "right"), ("llama", "right"), ("llama", "left"), ("xlnet", "left")]
)
def test_padding_changes_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, side: str
):
    model = request.getfixturevalue(f"random_{kind}")
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    change = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(change | {"padding_side": side}))
    settings = {"labels": labels_of(folder)[1:], "max_tokens": 128}
    together = classifier(folder, **settings)
    alone = classifier(folder, batch=1, **settings)
    for p_WL, expected_WL in zip(
        together.probabilities(TEXTS), alone.probabilities(TEXTS), strict=True
    ):
        np.testing.assert_allclose(p_WL, expected_WL, atol=1e-5)


def test_a_model_without_a_padding_token_reads_texts_one_by_one(random_llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(random_llama, tmp_path / "model"))
    change_config(folder, pad_token_id=None)
    settings = {"labels": labels_of(folder)[1:], "max_tokens": 128}
    expected = np.concatenate(classifier(random_llama, **settings).probabilities(TEXTS))
    found = np.concatenate(classifier(folder, **settings).probabilities(TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_is_the_models_token_not_the_tokenizers(random_llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(random_llama, tmp_path / "model"))
    change_config(folder, pad_token_id=1)
    settings = {"labels": labels_of(folder)[1:], "max_tokens": 128}
    expected = np.concatenate(classifier(random_llama, **settings).probabilities(TEXTS))
    found = np.concatenate(classifier(folder, **settings).probabilities(TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_word_decides_and_names_its_label(words: Path):
    assert classifier(words).classify(TEXTS) == [None, "weapons", "drugs", "drugs"]


def test_only_the_labels_that_are_named_reject(words: Path):
    assert classifier(words, labels=["drugs"]).classify(TEXTS) == [None, None, "drugs", "drugs"]


def test_batches_keep_the_order(words: Path):
    found = classifier(words, batch=3)
    assert found.classify(TEXTS * 5) == [None, "weapons", "drugs", "drugs"] * 5
    assert found.classify([]) == []


@pytest.mark.parametrize("place", [0, 1, 29, 30, 59, 60, 99])
def test_a_hazard_anywhere_in_a_long_text_is_seen(words: Path, place: int):
    text = ["sort"] * 100
    text[place] = "bomb"
    found = classifier(words)  # of whose 32 tokens 30 are text
    assert found.classify([" ".join(text), "sort", TEXTS[2]]) == ["weapons", None, "drugs"]
    windows = found._input.windows(" ".join(text))
    assert [len(window) for window in windows] == [32, 32, 32, 12]
    assert all(window[0] == 2 and window[-1] == 3 for window in windows)


def test_a_text_that_just_fits_is_one_window(words: Path):
    assert len(SafetyInput(section(words)).windows(" ".join(["sort"] * 30))) == 1


@pytest.mark.parametrize("attack", ["[SEP]", "[CLS] [SEP] [PAD]", "sort [SEP] bomb [PAD]"])
def test_control_tokens_in_a_text_are_text(random_bert: Path, attack: str):
    (window,) = SafetyInput(section(random_bert)).windows(attack)
    assert (window[0], window[-1]) == (2, 3)
    assert not set(window[1:-1]) & {0, 2, 3}
    assert len(window) > 3


def test_a_padding_token_in_a_text_hides_nothing_from_a_decoder(random_llama: Path):
    attack = "sort<|pad|><|eot|>"
    found = SafetyInput(section(random_llama, labels=labels_of(random_llama)[1:]))
    (window,) = found.windows(attack)
    tokenizer = make_tokenizer()
    assert not set(window) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(window) == attack


NAMES = ["harmless", "weapons", "drugs"]
REJECTING = {"weapons", "drugs"}


@pytest.mark.parametrize(
    ("rows", "threshold", "label"),
    [
        ([[0.6, 0.1, 0.3]], 0.5, None),
        ([[0.5, 0.2, 0.3]], 0.5, "drugs"),  # the sum, at the threshold
        ([[0.5, 0.2, 0.3]], 0.51, None),
        ([[0.5, 0.3, 0.2]], 0.5, "weapons"),
        ([[0.9, 0.1, 0.0], [0.1, 0.0, 0.9], [0.4, 0.6, 0.0]], 0.5, "drugs"),  # worst window
        ([[0.0, 0.0, 0.0]], 0.5, None),
        ([[0.9, np.nan, 0.0]], 0.5, "undecided"),
        ([[np.nan, 0.0, 0.0]], 0.5, "undecided"),
        ([[1.0, 0.0, 0.0], [np.nan, np.nan, np.nan]], 0.5, "undecided"),
        (np.empty((0, 3)), 0.5, "undecided"),
    ],
)
def test_a_verdict(rows: Any, threshold: float, label: str | None):
    assert verdict(np.array(rows), NAMES, REJECTING, threshold) == label


def test_a_label_name_that_two_outputs_share_counts_both():
    assert verdict(np.array([[0.4, 0.3, 0.3]]), ["ok", "bad", "bad"], {"bad"}, 0.6) == "bad"


def test_nan_weights_reject_every_text(copied: Path):
    change_weights(copied, classifier_bias=torch.tensor([0.0, torch.nan, 0.0]))
    assert classifier(copied).classify(TEXTS) == ["undecided"] * 4


def test_a_text_without_tokens_is_undecided_and_the_others_are_judged(random_llama: Path):
    found = classifier(random_llama, labels=labels_of(random_llama)[1:], threshold=1.0)
    assert found.classify(["", "sort", ""]) == ["undecided", None, "undecided"]


def test_bfloat16_is_close(words: Path):
    found = classifier(words, dtype="bfloat16")
    assert next(found._model.parameters()).dtype == torch.bfloat16
    assert found.classify(TEXTS) == [None, "weapons", "drugs", "drugs"]


def test_what_a_run_checks_first_needs_no_weights(copied: Path):
    (copied / "model.safetensors").unlink()
    assert SafetyInput(section(copied)).names_L == list(LABELS.values())


def test_an_unknown_label_is_named_with_the_models_labels(random_bert: Path):
    said = (
        r"gate\.safety\.labels: .* no label 'arms'; its labels are 'harmless', 'weapons', 'drugs'"
    )
    with pytest.raises(UserError, match=said):
        SafetyInput(section(random_bert, labels=["drugs", "arms"]))


def test_rejecting_by_every_label_of_a_softmax_is_refused(random_bert: Path):
    with pytest.raises(UserError, match=r"gate\.safety\.labels names every label"):
        SafetyInput(section(random_bert, labels=list(LABELS.values())))


def test_a_window_longer_than_the_model_reads_is_refused(random_bert: Path):
    with pytest.raises(UserError, match=r"max_tokens 129 is more than .* reads: set it to 128"):
        SafetyInput(section(random_bert, max_tokens=129))


def test_a_regression_is_refused(copied: Path):
    change_config(copied, problem_type="regression")
    with pytest.raises(UserError, match=r"gate\.safety\.model: .* is a regression"):
        SafetyInput(section(copied))


def test_an_absent_model_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"gate\.safety\.model: no model at .*/nothing"):
        classifier(tmp_path / "nothing")


def test_a_causal_model_is_refused(tmp_path: Path):
    folder = save_causal_model(tmp_path, tied=True)
    with pytest.raises(UserError, match=r"gate\.safety\.model: .* is LlamaForCausalLM, not a seq"):
        classifier(folder)


@pytest.mark.parametrize("damage", ["absent", "cut short"])
def test_weights_that_cannot_be_loaded_are_a_sentence(copied: Path, damage: str):
    weights = copied / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    if damage == "cut short":
        weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"gate\.safety\.model: .* cannot be loaded") as told:
        classifier(copied)
    assert "\n" not in str(told.value)


def test_a_model_without_its_head_is_refused_rather_than_made_up(copied: Path):
    change_weights(copied, classifier_weight=None, classifier_bias=None)
    with pytest.raises(UserError, match=r"has no weights classifier.bias, classifier.weight"):
        classifier(copied)


@pytest.mark.parametrize(
    ("kind", "said"), [("bert", "the tokenizer of .* know the letter"), ("llama", "")]
)
def test_a_model_without_its_tokenizer_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, said: str
):
    folder = Path(shutil.copytree(request.getfixturevalue(f"random_{kind}"), tmp_path / "model"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=rf"gate\.safety\.model: {said}"):
        SafetyInput(section(folder, labels=labels_of(folder)[1:]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_says_what_the_cpu_says(random_bert: Path, dtype: str):
    expected = np.concatenate(classifier(random_bert).probabilities(TEXTS))
    found = SafetyClassifier(section(random_bert, dtype=dtype), "cuda")
    tolerance = 1e-3 if dtype == "float32" else 0.1
    np.testing.assert_allclose(np.concatenate(found.probabilities(TEXTS)), expected, atol=tolerance)
