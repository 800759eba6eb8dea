"""One step of TRL's GRPOTrainer, timed; run by `make bench-peer` in an environment of its own.

    python benchmarks/peer_trl.py --model FOLDER --prompts FILE --answers 8 --tokens 128
        --repeats 5 --out FILE [--even]

TRL is given its best settings for the machine: each of `SETTINGS` is run and the fastest is kept;
all are written down. Its colocated vLLM does not run on CPU, so it generates with transformers,
with and without its continuous batching. A step is generation, rewards, reference
log-probabilities, forward, backward and the optimiser.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

WARM_UP = 2
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float32 in four parts": {"dtype": "float32", "gradient_accumulation_steps": 4},
    "float32 continuous batching": {
        "dtype": "float32",
        "use_transformers_continuous_batching": True,
    },
}


class StepClock(TrainerCallback):
    """Wall time of each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer that adds up the seconds spent in generation."""

    generation: list[float]

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = super()._generate(*args, **kwargs)
        self.generation.append(time.perf_counter() - start)
        return result


def length_reward(completions: list[Any], **_: Any) -> list[float]:
    """A reward that costs nothing, so that the systems and not the rewards are compared."""
    return [float(len(str(completion)) % 7) for completion in completions]


def run(name: str, options: argparse.Namespace, prompts: list[str]) -> dict[str, Any]:
    """Time `repeats` steps of one setting after a warm-up."""
    settings = dict(SETTINGS[name])
    dtype = settings.pop("dtype")
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in prompts]
    steps = WARM_UP + options.repeats
    batch = len(prompts) * options.answers
    parts = settings.get("gradient_accumulation_steps", 1)
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch // parts,
            num_generations=options.answers,
            max_completion_length=options.tokens,
            learning_rate=1e-6,
            beta=0.05,
            bf16=dtype == "bfloat16",
            model_init_kwargs={"dtype": dtype},
            gradient_checkpointing=False,
            scale_rewards="none",
            generation_kwargs={"min_new_tokens": options.tokens} if options.even else {},
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        clock = StepClock()
        trainer = TimedTrainer(
            model=str(options.model),
            reward_funcs=length_reward,
            args=config,
            train_dataset=Dataset.from_list(rows * steps),
            callbacks=[clock],
        )
        trainer.generation = []
        trainer.train()
    seconds = clock.seconds[WARM_UP:]
    generation = trainer.generation[WARM_UP:]
    return {
        "setting": name,
        "step_seconds": seconds,
        "generation_seconds": generation,
        "median_step_seconds": statistics.median(seconds),
        "median_generation_seconds": statistics.median(generation),
        "answers_per_second": batch / statistics.median(seconds),
    }


def main() -> None:
    """Run every setting and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--answers", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--even", action="store_true", help="every answer has that many tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prompts = json.loads(options.prompts.read_text())
    results, failures = [], {}
    for name in SETTINGS:
        try:
            results.append(run(name, options, prompts))
        except Exception as error:  # noqa: BLE001 - a setting that TRL cannot run here is a finding
            failures[name] = f"{type(error).__name__}: {error}"
    best = max(results, key=lambda result: result["answers_per_second"])
    options.out.write_text(json.dumps({"best": best, "all": results, "failed": failures}, indent=1))


if __name__ == "__main__":
    main()
