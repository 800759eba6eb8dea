"""What a model of the playground can do, measured on the development split.

Plain Hugging Face generation: this is the yardstick for making the base model, not the game.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from playground import corpus, language, verdicts
from playground.corpus import Document, Encoders
from playground.language import Problem
from playground.tokenizer import PAD, control_id

REPLY_TOKENS = 40
ROWS = 256
VERDICT = re.compile(
    r"<calculation> (?P<terms>(?:[01] \+ ){6}[01]) = (?P<total>\d) </calculation> "
    r"<score> (?P<score>\d) </score>$"
)


@dataclass(frozen=True)
class Abilities:
    """Solve rates by (family, level), and how the other two parts are played."""

    greedy: dict[tuple[str, int], float]
    sampled: dict[tuple[str, int], float]
    challenger_readable: float
    challenger_distinct: float
    challenger_cells: dict[tuple[str, int], int]
    verdicts_parsable: float
    verdicts_agree: float
    mean_score_sound: float
    mean_score_mangled: float


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


def score(verdict: str) -> int | None:
    """The score of a verdict written as the rules write it, else None."""
    match = VERDICT.search(verdict)
    if match is None:
        return None
    total = match["terms"].count("1")
    return total if {match["total"], match["score"]} == {str(total)} else None


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
    scores = [score(verdict) for verdict in written]
    sound = [s for s, j in zip(scores, judged, strict=True) if language.parse(j.instruction)]
    mangled = [s for s, j in zip(scores, judged, strict=True) if not language.parse(j.instruction)]
    return Abilities(
        greedy=solve_rates(problems, play(asked, sample=False)),
        sampled=solve_rates(problems, play(asked, sample=True)),
        challenger_readable=len(invented) / n,
        challenger_distinct=len({problem.key for problem in invented}) / n,
        challenger_cells=dict(Counter((p.family, p.level) for p in invented)),
        verdicts_parsable=sum(score is not None for score in scores) / n,
        verdicts_agree=sum(score(j.verdict) == s for s, j in zip(scores, judged, strict=True)) / n,
        mean_score_sound=_mean(sound),
        mean_score_mangled=_mean(mangled),
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
    count = len(abilities.greedy)
    greedy, sampled = sum(abilities.greedy.values()), sum(abilities.sampled.values())
    lines += [
        f"solver: {greedy / count:.1%} greedily, {sampled / count:.1%} at temperature 1",
        f"challenger: {abilities.challenger_readable:.1%} readable, "
        f"{abilities.challenger_distinct:.1%} distinct",
        f"judge: {abilities.verdicts_parsable:.1%} parsable, {abilities.verdicts_agree:.1%} agree; "
        f"mean score {abilities.mean_score_sound:.2f} for sound queries, "
        f"{abilities.mean_score_mangled:.2f} for mangled ones",
    ]
    return "\n".join(lines)
