"""A tiny build: whole, cached, decided by its seed, loadable as any Hugging Face checkpoint."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from playground import abilities, corpus, language, training
from playground.base_model import build
from playground.tokenizer import make_tokenizer

TINY = training.Recipe(
    tokens=3000, batch_tokens=1000, hidden=32, layers=1, heads=1, feed_forward=32
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(0, tmp_path_factory.mktemp("base-models"), TINY)


def test_checkpoint_loads_and_generates(folder: Path) -> None:
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.eos_token_id == tok.eos_token_id
    assert tok.chat_template
    ids = tok.apply_chat_template(
        [{"role": "user", "content": "Reverse the words sun cat moon ."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    assert model.generate(ids, max_new_tokens=3).shape[1] > ids.shape[1]
    measured = abilities.measure(model, tok, n=10)
    assert "challenger" in abilities.table(measured)


def test_second_call_finds_the_first(folder: Path) -> None:
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert build(0, folder.parent, TINY) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert list(folder.parent.glob("base-*")) == [folder]


def test_weights_are_decided_by_the_seed(folder: Path, tmp_path: Path) -> None:
    again, other = build(0, tmp_path, TINY), build(1, tmp_path, TINY)
    weights = [(path / "model.safetensors").read_bytes() for path in (folder, again, other)]
    assert folder.name == again.name != other.name
    assert weights[0] == weights[1] != weights[2]


def test_corpus_holds_train_problems_only() -> None:
    rng = random.Random(0)
    for _ in range(300):
        solver = language.read(corpus.solver_document(rng).slots["query"])
        invented = language.read(corpus.challenger_document(rng).reply)
        assert language.split_of(solver) == language.split_of(invented) == "train"


def test_challenger_document_fills_its_template() -> None:
    rng = random.Random(0)
    for _ in range(100):
        document = corpus.challenger_document(rng)
        start = document.slots["template"].split(language.SLOT)[0]
        assert document.reply.startswith(start)


def test_loss_covers_replies_only() -> None:
    tok = make_tokenizer()
    model = training.make_model(TINY, tok, seed=0)
    example = corpus.Encoders(tok).examples([corpus.solver_document(random.Random(0))])[0]
    ids = torch.tensor([example.prompt_ids + example.reply_ids])
    labels = ids.clone()
    labels[:, : len(example.prompt_ids)] = -100
    expected = model(input_ids=ids, labels=labels).loss
    longer = corpus.Example(example.prompt_ids * 2, [])  # makes the batch pad the first
    found = training.reply_loss(model, [example, longer], tok.pad_token_id)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (1.0, 0.2)])
def test_rate_rises_then_falls(progress: float, factor: float) -> None:
    assert training.rate_at(progress, 0.1, 0.2) == pytest.approx(factor)
