"""`make bench-peer`: answers per second beside TRL's GRPOTrainer, on the same work.

    python -m benchmarks.peer --peer-python .venv-peer/bin/python

Two works, each with one model, prompts, N × G and limits for both systems, float32, β 0.05 with a
reference model, AdamW:

- own: the quickstart's base model answers 32 of the playground's problems 8 times each, and ends
  its answers where it will;
- even: a random model of 3.7M parameters answers 8 prompts 8 times each with 128 tokens, the case
  in which nothing is gained by not padding.

Ours is a whole iteration of `algorithm: grpo` at staleness 0: sampling, verifier, one gradient
step, weights published and verified. TRL runs in an environment of its own
(benchmarks/peer_trl.py) at the fastest of its settings for this machine. The two run one after
the other; the result has both with their split by phase.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks import measure
from benchmarks.bench import ANSWERS, QUERIES, WARM_UP, Kept
from benchmarks.shapes import QUICKSTART, random_model
from cluster.connection import connect
from cluster.initial import find_model
from cluster.record import IterationRecord
from cluster.wiring import wire
from configs.load import load
from configs.schema import RunConfig
from playground.language import development

WORDS = "red blue green gold cat dog bird fish sun moon rain snow tree road ship king".split()


@dataclass(frozen=True)
class Work:
    """What both systems do."""

    name: str
    model: Path
    prompts: list[str]
    answers: int
    tokens: int
    """Most tokens of an answer."""
    even: bool
    """Whether every answer has that many."""
    micro_batch_tokens: int
    """Ours."""


def main() -> None:
    """Run both on each work and write the figures."""
    parser = measure.parser(__doc__)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for work in works(Path(folder)):
            scratch = Path(folder) / work.name
            scratch.mkdir(exist_ok=True)
            ours = our_figures(scratch, work, options.repeats)
            theirs = trl_figures(scratch, work, options)
            best = theirs["best"]
            ratio = ours["answers_per_second"]["median"] / best["answers_per_second"]
            if work.even:
                # Some of ours end by themselves, which TRL's are not let.
                ratio *= ours["tokens_per_answer"] / work.tokens
            print(
                f"{work.name}: ours {ours['answers_per_second']['median']:.1f} answers/s, TRL"
                f" ({best['setting']}) {best['answers_per_second']:.1f}: ratio {ratio:.2f}"
            )
            size = {"queries": len(work.prompts), "answers": work.answers, "tokens": work.tokens}
            figures[work.name] = {
                "answers_per_second_ratio": ratio,
                "ours": ours,
                "trl": theirs,
                "work": size,
            }
    measure.write(measure.RESULTS / f"peer-{measure.machine_name()}.json", figures)


def works(scratch: Path) -> list[Work]:
    """The two works, with their models."""
    quickstart = load(Path("configs/quickstart.yaml"))
    problems = [problem.text for problem in development(quickstart.queries)]
    prompts = [f"Say backwards {' '.join(WORDS[i : i + 8])} ." for i in range(QUERIES)]
    limit = quickstart.solver.sampling.max_tokens
    model = Path(find_model(quickstart).path)
    own_batch = quickstart.learner.micro_batch_tokens
    random = random_model("tiny", scratch / "model")
    even = QUICKSTART.sampled
    return [
        Work("own", model, problems, quickstart.answers, limit, False, own_batch),
        Work("even", random, prompts, ANSWERS, even, True, 4096),
    ]


def our_figures(scratch: Path, work: Work, repeats: int) -> dict[str, Any]:
    """Whole iterations of our GRPO."""
    data = scratch / "prompts.jsonl"
    data.write_text("".join(json.dumps({"query": prompt}) + "\n" for prompt in work.prompts))
    engine = {"dtype": "float32", "context": 512, "eager": True, "cpus": 0.5, "threads": 2}
    config = RunConfig.model_validate(
        {
            "algorithm": "grpo",
            "run_dir": scratch / "run",
            "iterations": WARM_UP + repeats,
            "queries": len(work.prompts),
            "answers": work.answers,
            "model": {"path": str(work.model)},
            "solver": {"sampling": {"max_tokens": work.tokens}},
            "challenger": {"reward": "minus_v"},
            "source": {"kind": "dataset", "dataset": {"path": str(data)}},
            "rewards": {
                "quality": None,
                "parts": [
                    {
                        "kind": "verifier",
                        "name": "length",
                        "function": "benchmarks.length:length_reward",
                        "fleet": {"cpus": 0.25},
                    }
                ],
            },
            "rollout": engine,
            "learner": {"dtype": "float32", "zero_stage": 0, "threads": 2, "cpus": 0.5,
                        "learning_rate": 1e-6, "micro_batch_tokens": work.micro_batch_tokens},
        }
    )  # fmt: skip
    connect()
    try:
        records = asyncio.run(_play(config, str(work.model)))[WARM_UP:]
    finally:
        ray.shutdown()
    seconds = [record.seconds for record in records]
    answers = len(work.prompts) * work.answers
    return {
        "answers_per_second": measure.figure([answers / s["iteration"] for s in seconds], "1/s"),
        "tokens_per_answer": statistics.mean(record.answer_tokens for record in records),
        **{
            f"{phase}_seconds": measure.figure([s[phase] for s in seconds], "s")
            for phase in ("wait", "train", "publish", "iteration")
        },
    }


async def _play(config: RunConfig, model: str) -> list[IterationRecord]:
    wired = wire(config, model)
    try:
        await wired.start()
        await wired.policy.publish(0)
        game = wired.game(config, Kept())
        return [record async for record in game.play()]
    finally:
        await wired.stop()


def trl_figures(scratch: Path, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """TRL's, measured in its own environment."""
    (scratch / "prompts.json").write_text(json.dumps(work.prompts))
    out = scratch / "trl.json"
    command = [
        str(options.peer_python), "benchmarks/peer_trl.py",
        "--model", str(work.model), "--prompts", str(scratch / "prompts.json"),
        "--answers", str(work.answers), "--tokens", str(work.tokens),
        "--repeats", str(options.repeats), "--out", str(out), *(["--even"] if work.even else []),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return json.loads(out.read_text())


if __name__ == "__main__":
    main()
