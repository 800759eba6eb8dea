"""What a model of the playground can do, measured on the development split.

Plain Hugging Face generation: this is the yardstick for making the base model, not the game.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from playground import corpus, language, verdicts
from playground.corpus import Document, Encoders
from playground.language import Problem
from playground.tokenizer import PAD, control_id
from playground.verdicts import Judged
from rewards.verdict import parse_verdict

REPLY_TOKENS = 40
ROWS = 256


@dataclass(frozen=True)
class Judging:
    """How verdicts were written: shares of all, and mean scores of those that can be read."""

    parsable: float
    agree: float
    mean_sound: float
    mean_mangled: float


@dataclass(frozen=True)
class Abilities:
    """Solve rates by (family, level), and how the other two parts are played."""

    greedy: dict[tuple[str, int], float]
    sampled: dict[tuple[str, int], float]
    challenger_readable: float
    challenger_distinct: float
    challenger_cells: dict[tuple[str, int], int]
    judging: Judging


@torch.inference_mode()
def replies(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    sample: bool,
) -> list[str]:
    """One reply to each prompt, greedily or at temperature 1."""
    found: list[str] = []
    for start in range(0, len(prompts), ROWS):
        rows = prompts[start : start + ROWS]
        longest = max(map(len, rows))
        pad_id = control_id(tokenizer, PAD)
        ids = torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows])
        out = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids=ids,
            attention_mask=(ids != pad_id).long(),
            do_sample=sample,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=REPLY_TOKENS,
        )
        found += tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return found


def solve_rates(
    problems: Sequence[Problem], answers: Iterable[str]
) -> dict[tuple[str, int], float]:
    """Share of right answers by family and level."""
    scores: dict[tuple[str, int], list[float]] = defaultdict(list)
    for problem, answer in zip(problems, answers, strict=True):
        right = language.verify(problem.text, answer, None)
        scores[problem.family, problem.level].append(right)
    return {cell: sum(values) / len(values) for cell, values in scores.items()}


def compare(judged: Sequence[Judged], written: Sequence[str]) -> Judging:
    """The written verdicts, read as the game reads them, against those of the rules."""
    scores = [parse_verdict(verdict) for verdict in written]
    ruled = [parse_verdict(one.verdict) for one in judged]
    readable = [language.parse(one.instruction) is not None for one in judged]
    sound = [score for score, read in zip(scores, readable, strict=True) if read]
    mangled = [score for score, read in zip(scores, readable, strict=True) if not read]
    return Judging(
        parsable=sum(score is not None for score in scores) / len(scores),
        agree=sum(a == b for a, b in zip(scores, ruled, strict=True)) / len(scores),
        mean_sound=_mean(sound),
        mean_mangled=_mean(mangled),
    )


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int = 1000, seed: int = 0
) -> Abilities:
    """Abilities on `n` development problems, `n` challenges and `n` pairs to judge."""
    torch.manual_seed(seed)
    rng = random.Random(f"abilities:{seed}")
    encoders = Encoders(tokenizer)

    def play(documents: list[Document], sample: bool) -> list[str]:
        prompts = [example.prompt_ids for example in encoders.examples(documents)]
        return replies(model, tokenizer, prompts, sample)

    problems = language.development(n, seed)
    asked = [Document("solver", {"query": problem.text}, "") for problem in problems]
    queries = play([corpus.challenger_document(rng) for _ in range(n)], sample=True)
    invented = [problem for query in queries if (problem := language.parse(query))]
    judged = [verdicts.example(rng, problem) for problem in problems]
    written = play(
        [
            Document("judge", {"instruction": j.instruction, "response": j.response}, "")
            for j in judged
        ],
        sample=True,
    )
    return Abilities(
        greedy=solve_rates(problems, play(asked, sample=False)),
        sampled=solve_rates(problems, play(asked, sample=True)),
        challenger_readable=len(invented) / n,
        challenger_distinct=len({problem.key for problem in invented}) / n,
        challenger_cells=dict(Counter((p.family, p.level) for p in invented)),
        judging=compare(judged, written),
    )


def _mean(scores: Iterable[int | None]) -> float:
    known = [score for score in scores if score is not None]
    return sum(known) / max(1, len(known))


def table(abilities: Abilities) -> str:
    """The abilities as text for a terminal."""
    lines = ["family   level  greedy  sampled  invented"]
    for cell in language.CELLS:
        greedy, sampled = abilities.greedy.get(cell, 0.0), abilities.sampled.get(cell, 0.0)
        invented = abilities.challenger_cells.get(cell, 0)
        lines.append(f"{cell[0]:8} {cell[1]:5}  {greedy:6.1%}  {sampled:7.1%}  {invented:8}")
    count, judging = len(abilities.greedy), abilities.judging
    greedy, sampled = sum(abilities.greedy.values()), sum(abilities.sampled.values())
    lines += [
        f"solver: {greedy / count:.1%} greedily, {sampled / count:.1%} at temperature 1",
        f"challenger: {abilities.challenger_readable:.1%} readable, "
        f"{abilities.challenger_distinct:.1%} distinct",
        f"judge: {judging.parsable:.1%} parsable, {judging.agree:.1%} agree; "
        f"mean score {judging.mean_sound:.2f} for sound queries, "
        f"{judging.mean_mangled:.2f} for mangled ones",
    ]
    return "\n".join(lines)
