"""The documents the base model learns from: one-turn chats for its three parts.

Invariant: every task in the corpus belongs to the train split. Prompts are encoded as the game
encodes them, model-written text as plain text; the loss covers the reply and its end token only.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from playground import language, verdicts
from playground.language import SLOT, Problem
from playground.slips import author_answer
from playground.tokenizer import END, PromptEncoder, control_id, encode_plain, prompt_text

PARTS = ("solver", "challenger", "judge")
PART_WEIGHTS = (0.73, 0.18, 0.09)
FAMILY_WEIGHTS = {"sort": 1.2, "reverse": 1.2, "compare": 1.2, "omit": 1, "pick": 1}
CHUNK = 4096


@dataclass(frozen=True)
class Document:
    """A prompt and the reply to learn."""

    part: str
    slots: dict[str, str]
    reply: str


@dataclass(frozen=True)
class Example:
    """A document in token ids; the reply ends in the end token."""

    prompt_ids: list[int]
    reply_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


@dataclass
class Encoders:
    """The three prompts of the game, ready to be filled."""

    tokenizer: PreTrainedTokenizerFast
    by_part: dict[str, PromptEncoder] = field(init=False)

    def __post_init__(self) -> None:
        prompts = ("{{query}}", prompt_text("challenger"), prompt_text("quality"))
        self.by_part = {
            part: PromptEncoder(self.tokenizer, prompt)
            for part, prompt in zip(PARTS, prompts, strict=True)
        }

    def examples(self, documents: list[Document]) -> list[Example]:
        """The documents in token ids, in the same order."""
        replies = encode_plain(self.tokenizer, [document.reply for document in documents])
        prompts: dict[str, Iterator[list[int]]] = {
            part: iter(encoder.encode(d.slots for d in documents if d.part == part))
            for part, encoder in self.by_part.items()
        }
        end_id = control_id(self.tokenizer, END)
        return [
            Example(next(prompts[document.part]), [*reply, end_id])
            for document, reply in zip(documents, replies, strict=True)
        ]


def draw_problem(
    rng: random.Random, family: str | None = None, phrasing: str | None = None
) -> Problem:
    """A problem of the train split."""
    while True:
        problem = language.generate(rng, family, phrasing=phrasing)
        if language.split_of(problem) == "train":
            return problem


def solver_document(rng: random.Random) -> Document:
    """A query and what an author answers to it."""
    (family,) = rng.choices(list(FAMILY_WEIGHTS), list(FAMILY_WEIGHTS.values()))
    phrasing = rng.choice(language.BY_NAME[family].phrasings)
    problem = draw_problem(rng, family, phrasing)
    return Document("solver", {"query": problem.text}, author_answer(rng, problem, phrasing))


FAMILY_OF_TASK = {family.task: family.name for family in language.FAMILIES}


def challenger_document(rng: random.Random) -> Document:
    """A request for a task, and a filled template."""
    weights = [weight for _, _, weight in language.CHALLENGES]
    task, template, _ = rng.choices(language.CHALLENGES, weights)[0]
    problem = draw_problem(rng, FAMILY_OF_TASK.get(task), template or None)
    assert SLOT not in problem.text
    return Document("challenger", {"task": task, "template": template}, problem.text)


def judge_document(rng: random.Random) -> Document:
    """An instruction, a response and the verdict on them."""
    judged = verdicts.example(rng, draw_problem(rng))
    slots = {"instruction": judged.instruction, "response": judged.response}
    return Document("judge", slots, judged.verdict)


MAKERS = {
    "solver": solver_document,
    "challenger": challenger_document,
    "judge": judge_document,
}


def batches(encoders: Encoders, rng: random.Random, batch_tokens: int) -> Iterator[list[Example]]:
    """Endless batches of about `batch_tokens` tokens, each of examples of similar length."""
    while True:
        parts = rng.choices(PARTS, PART_WEIGHTS, k=CHUNK)
        examples = sorted(encoders.examples([MAKERS[part](rng) for part in parts]), key=len)
        chunk: list[list[Example]] = [[]]
        for example in examples:
            if (len(chunk[-1]) + 1) * len(example) > batch_tokens:
                chunk.append([])
            chunk[-1].append(example)
        rng.shuffle(chunk)
        yield from chunk


def pad(examples: list[Example], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and reply mask, both [examples, longest], padded on the right."""
    longest = max(map(len, examples))
    ids = np.full((len(examples), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(examples), longest), dtype=bool)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = example.prompt_ids + example.reply_ids
        mask[row, len(example.prompt_ids) : len(example)] = True
    return ids, mask
