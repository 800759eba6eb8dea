"""`make bench-peer`: answers per second beside TRL's GRPOTrainer, on the same work.

    python -m benchmarks.peer --peer-python .venv-peer/bin/python

Same random model (3.7M parameters), 8 prompts × 8 answers of 128 tokens, float32, β 0.05 with a
reference model, AdamW. Ours is a whole iteration of `algorithm: grpo` at staleness 0: sampling,
verifier, one gradient step, weights published and verified. TRL runs in an environment of its
own (benchmarks/peer_trl.py) at the fastest of its settings for this machine. The two run one
after the other; the result has both with their split by phase.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import ray

from benchmarks import measure
from benchmarks.bench import ANSWERS, QUERIES, WARM_UP, Kept
from benchmarks.shapes import QUICKSTART, random_model
from cluster.record import IterationRecord
from cluster.run import connect
from cluster.wiring import wire
from configs.schema import RunConfig

TOKENS = QUICKSTART.sampled
WORDS = "red blue green gold cat dog bird fish sun moon rain snow tree road ship king".split()


def main() -> None:
    """Run both and write the figures."""
    parser = measure.parser(__doc__)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = random_model("tiny", scratch / "model")
        prompts = [f"Say backwards {' '.join(WORDS[i : i + 8])} ." for i in range(QUERIES)]
        ours = our_figures(scratch, model, prompts, options.repeats)
        theirs = trl_figures(scratch, model, prompts, options)
    best = theirs["best"]
    ratio = ours["answers_per_second"]["median"] / best["answers_per_second"]
    figures = {
        "answers_per_second_ratio": ratio,
        "ours": ours,
        "trl": theirs,
        "work": {"queries": QUERIES, "answers": ANSWERS, "tokens": TOKENS},
    }
    print(f"ours {ours['answers_per_second']['median']:.1f} answers/s, TRL ({best['setting']})")
    print(f"{best['answers_per_second']:.1f} answers/s: ratio {ratio:.2f}")
    measure.write(measure.RESULTS / f"peer-{measure.machine_name()}.json", figures)


def our_figures(scratch: Path, model: Path, prompts: list[str], repeats: int) -> dict[str, Any]:
    """Whole iterations of our GRPO."""
    data = scratch / "prompts.jsonl"
    data.write_text("".join(json.dumps({"query": prompt}) + "\n" for prompt in prompts))
    engine = {"dtype": "float32", "context": 512, "eager": True, "cpus": 0.5, "threads": 2}
    config = RunConfig.model_validate(
        {
            "algorithm": "grpo",
            "run_dir": scratch / "run",
            "iterations": WARM_UP + repeats,
            "queries": QUERIES,
            "answers": ANSWERS,
            "model": {"path": str(model)},
            "solver": {"sampling": {"max_tokens": TOKENS}},
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
                        "learning_rate": 1e-6, "micro_batch_tokens": 4096},
        }
    )  # fmt: skip
    connect()
    try:
        records = asyncio.run(_play(config, str(model)))[WARM_UP:]
    finally:
        ray.shutdown()
    seconds = [record.seconds for record in records]
    answers = QUERIES * ANSWERS
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


def trl_figures(
    scratch: Path, model: Path, prompts: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """TRL's, measured in its own environment."""
    (scratch / "prompts.json").write_text(json.dumps(prompts))
    out = scratch / "trl.json"
    command = [
        str(options.peer_python), "benchmarks/peer_trl.py",
        "--model", str(model), "--prompts", str(scratch / "prompts.json"),
        "--queries", str(QUERIES), "--answers", str(ANSWERS), "--tokens", str(TOKENS),
        "--repeats", str(options.repeats), "--out", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return json.loads(out.read_text())


if __name__ == "__main__":
    main()
