"""The two commands: `selfplay evaluate alpaca-eval`, with answers to judge or verdicts to add up.

Both return one JSON object of rates (see `rates.py`). The first writes into its folder:

    answers.jsonl           the answers, kept as they come
    model_outputs.json      the model's answers, in AlpacaEval's form
    reference_outputs.json  those of the model it is compared with, where they were made here
    replies.jsonl           the judge's replies, paid once, or a reward model's scores
    annotations.json        the verdicts, in AlpacaEval's form
    result.json, chart.png  the rates
    evaluation.json         whose folder it is
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from evaluation.alpaca import hub
from evaluation.alpaca.answers import Contestant, outputs_of
from evaluation.alpaca.base import read_base, refuse_another_reference
from evaluation.alpaca.chart import draw
from evaluation.alpaca.client import read_key
from evaluation.alpaca.config import AggregateConfig, AlpacaEvalConfig, LengthControlConfig
from evaluation.alpaca.files import write_json
from evaluation.alpaca.instructions import Instruction, first_of_each, load_instructions
from evaluation.alpaca.judge import Judged, judge_pairs
from evaluation.alpaca.length import length_controlled, unfit
from evaluation.alpaca.outputs import Joined, join, read_outputs
from evaluation.alpaca.pairwise import PairwisePrompt
from evaluation.alpaca.protocol import Protocol, protocol_beside
from evaluation.alpaca.rates import Rates, summarise
from evaluation.alpaca.reward_judge import RewardJudge, judge_by_reward
from evaluation.alpaca.verdicts import Verdicts, read_verdicts, verdicts_of
from evaluation.claim import RESULT, claim

Say = Callable[[str], None]

PROTOCOL = {
    "model", "verdict", "labels", "top_logprobs", "min_label_mass", "temperature", "max_tokens",
}  # fmt: skip
"""What of a judge's settings its verdicts depend on, beside its prompt and more fields."""


def aggregate(config: AggregateConfig) -> Rates:
    """`selfplay evaluate alpaca-eval --annotations FILE`: the rates of verdicts that exist.

    Raises:
        UserError: A file cannot be used.
    """
    verdicts = read_verdicts(config.annotations, config.generator)
    instructions, problem = _instructions_for(verdicts, config)
    asked = protocol_beside(config.annotations)
    base = read_base(config.base_annotations, verdicts.judge, verdicts.reference, asked)
    result = _rates(verdicts, config.length_control, base, instructions)
    if result["n_without_subset"] and problem:
        result["notes"].append(f"rows without a subset are in none: {problem}")
    return result


async def evaluate(
    config: AlpacaEvalConfig,
    model: Contestant | Path,
    against: Contestant | Path,
    out: Path,
    *,
    limit: int | None = None,
    judge: RewardJudge | None = None,
    say: Say = print,
) -> Rates:
    """`selfplay evaluate alpaca-eval RUN|MODEL --against MODEL|FILE`: answer, judge, add up.

    Started again with the same `out` it goes on where it was stopped.

    Args:
        config: The settings; `config.judge` is needed where there is no `judge`.
        model: What is evaluated, or a file of its answers.
        against: What it is compared with, or a file of its answers.
        out: The folder for the results.
        limit: How many instructions, the first of each subset by turns; None: all.
        judge: A reward model instead of a chat endpoint.
        say: Takes lines for the user: the cost before it is spent, progress, what is missing.

    Raises:
        UserError: Something cannot be used, or `out` holds another evaluation; or some pairs have
            no verdict, after what there is was written: starting again continues.
    """
    _check(config, judge)
    benchmark = load_instructions(config.instructions)
    instructions = first_of_each(benchmark, limit)
    base = _base(config, against, judge)
    settings = _settings(config, model, against, instructions, limit, judge)
    claim(out, settings)
    reference_file, model_file = out / "reference_outputs.json", out / "model_outputs.json"
    # Other seeds for the reference: a model against its own copy is not to meet its own words.
    seed, how = len(instructions), config.answers
    reference = await outputs_of(against, instructions, how, reference_file, say, seed)
    outputs = await outputs_of(model, instructions, how, model_file, say)
    joined = join(reference, outputs, instructions)
    for note in joined.notes:
        say(note)
    names = (reference.generator, outputs.generator)
    cache = out / "replies.jsonl"
    if judge is not None:
        judged = await judge_by_reward(joined.pairs, names, judge, cache, say)
    else:
        assert config.judge is not None, "checked above"
        kept = config.judge.cache or cache
        judged = await judge_pairs(joined.pairs, names, config.judge, kept, say)
    for note in judged.notes:
        say(note)
    return _finish(config, joined, judged, benchmark, base, settings, out)


def _check(config: AlpacaEvalConfig, judge: RewardJudge | None) -> None:
    """Find what is wrong with the judge before hours of answering."""
    if judge is not None:
        return
    if config.judge is None:
        raise UserError("judge: name a judge, judge.model and judge.base_url, or a reward model")
    PairwisePrompt(config.judge)
    read_key(config.judge)


def _base(
    config: AlpacaEvalConfig, against: Contestant | Path, judge: RewardJudge | None
) -> Verdicts | None:
    """The verdicts on the base, found wrong before hours of answering."""
    if config.base_annotations is None:
        return None
    by = judge.name if judge is not None else config.judge and config.judge.model
    reference = read_outputs(against).generator if isinstance(against, Path) else against.name
    return read_base(config.base_annotations, by, reference, _protocol(config, judge))


def _finish(
    config: AlpacaEvalConfig,
    joined: Joined,
    judged: Judged,
    benchmark: Sequence[Instruction],
    base: Verdicts | None,
    settings: dict[str, Any],
    out: Path,
) -> Rates:
    """Write the verdicts and, where any can be used, the rates and the chart."""
    write_json(out / "annotations.json", judged.rows)
    verdicts = verdicts_of(judged.rows)
    if not verdicts.kept_n.any():
        n_replies = len(judged.rows) - verdicts.dropped.get("refused", 0)
        raise UserError(
            judged.unfinished
            or f"none of the judge's {n_replies} replies is a verdict: see"
            f" {out / 'annotations.json'} for what it wrote"
        )
    result = _rates(verdicts, config.length_control, base, benchmark)
    result |= {"settings": settings, "join": joined.counts, "judging": judged.account}
    if joined.counts["n_instructions"] < len(benchmark):
        result["notes"].append(
            f"only {settings['limit']} of {len(benchmark)} instructions, the first of each subset"
            " by turns"
        )
    result["notes"] += [*joined.notes, *judged.notes, *filter(None, [judged.unfinished])]
    write_json(out / RESULT, result)
    draw({verdicts.model or "model": result}, out / "chart.png")
    if judged.unfinished:
        raise UserError(judged.unfinished)
    return result


def _rates(
    verdicts: Verdicts,
    length: LengthControlConfig,
    base: Verdicts | None,
    instructions: Sequence[Instruction] | None,
) -> Rates:
    """All that can be said of the verdicts."""
    if base is not None:
        refuse_another_reference(base, verdicts)
    if instructions is not None:
        verdicts = verdicts.with_subsets({i.text: i.subset for i in instructions})
    texts = [i.text for i in instructions] if instructions is not None else None
    control = length_controlled(verdicts, length, texts)
    result = summarise(verdicts, base, control.preference_n)
    if control.absent:
        result["length_controlled_absent"] = control.absent
    else:
        result["length_controlled_source"] = control.source
    return result


def _instructions_for(
    verdicts: Verdicts, config: AggregateConfig
) -> tuple[list[Instruction] | None, str | None]:
    """The benchmark's instructions, or why they are not at hand; a file that is named must do."""
    if config.instructions is not None:
        return load_instructions(config.instructions), None
    fitted = config.length_control.weights is None and unfit(verdicts) is None
    if all(verdicts.subset_n) and not fitted:
        return None, None
    try:
        return load_instructions(hub.fetch(hub.INSTRUCTIONS)), None
    except hub.UnreachableError as error:
        return None, str(error)


def _settings(
    config: AlpacaEvalConfig,
    model: Contestant | Path,
    against: Contestant | Path,
    instructions: Sequence[Instruction],
    limit: int | None,
    judge: RewardJudge | None,
) -> dict[str, Any]:
    """All that tells this evaluation from another in the same folder."""
    texts = "\0".join(instruction.text for instruction in instructions)
    return {
        "evaluation": "alpaca-eval",
        "model": _asked(model),
        "against": _asked(against),
        "answers": config.answers.model_dump(mode="json"),
        "instructions": hashlib.sha256(texts.encode()).hexdigest(),
        "limit": limit,
        "judge": _protocol(config, judge),
    }


def _protocol(config: AlpacaEvalConfig, judge: RewardJudge | None) -> Protocol:
    """All that a verdict depends on; not where the judge is, which may move."""
    if judge is not None:
        return {"model": judge.name, **judge.asked}
    assert config.judge is not None, "checked before"
    # Not as it stands: some endpoints take a key in the body.
    more = json.dumps(config.judge.extra_body, sort_keys=True)
    return config.judge.model_dump(mode="json", include=PROTOCOL) | {
        "prompt": PairwisePrompt(config.judge).template,
        "extra_body": hashlib.sha256(more.encode()).hexdigest(),
    }


def _asked(contestant: Contestant | Path) -> Any:
    return str(contestant) if isinstance(contestant, Path) else dict(contestant.asked)
