"""Steps of TRL's GRPOTrainer on request; run by `make bench-peer` in an environment of its own.

    python benchmarks/peer_trl.py --model FOLDER --prompts FILE --answers 8 --tokens 128
        --steps 7 --dtype float32 [--parts 4] [--continuous-batching] [--even]

Before each step it waits for a line on its standard input, and answers with one on its standard
output, as JSON: the step's seconds and its generation's, its answers' mean and longest length. A
step is generation, rewards, reference log-probabilities, forward, backward and the optimiser. TRL's
colocated vLLM does not run on CPU, so it generates with transformers, with or without its
continuous batching.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPLIES = os.fdopen(os.dup(1), "w", buffering=1)
"""Standard output as it was; what the libraries print there goes to standard error."""
os.dup2(2, 1)

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402


class StepClock(TrainerCallback):
    """Lets a step begin when it is asked for, and tells how long it took."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not sys.stdin.readline():
            sys.exit("nobody asks for steps any more")
        self.generation = 0.0
        self.lengths: list[int] = []
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        reply = {
            "step": time.perf_counter() - self._start,
            "generation": self.generation,
            "tokens": statistics.mean(self.lengths),
            "longest": max(self.lengths),
        }
        print(json.dumps(reply), file=REPLIES)


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer that notes the seconds spent in generation and the answers' lengths."""

    clock: StepClock

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = super()._generate(*args, **kwargs)
        self.clock.generation += time.perf_counter() - start
        _, completion_ids, *_ = result
        self.clock.lengths += [len(ids) for ids in completion_ids]
        return result


def length_reward(completions: list[Any], **_: Any) -> list[float]:
    """A reward that costs nothing, so that the systems and not the rewards are compared."""
    return [float(len(str(completion)) % 7) for completion in completions]


def train(options: argparse.Namespace, prompts: list[str], folder: str) -> None:
    """Train `steps` steps, each when it is asked for."""
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in prompts]
    config = GRPOConfig(
        output_dir=folder,
        max_steps=options.steps,
        per_device_train_batch_size=len(prompts) * options.answers // options.parts,
        gradient_accumulation_steps=options.parts,
        num_generations=options.answers,
        max_completion_length=options.tokens,
        learning_rate=1e-6,
        beta=0.05,
        bf16=options.dtype == "bfloat16",
        model_init_kwargs={"dtype": options.dtype},
        gradient_checkpointing=False,
        scale_rewards="none",
        generation_kwargs={"min_new_tokens": options.tokens} if options.even else {},
        use_transformers_continuous_batching=options.continuous_batching,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    clock = StepClock()
    trainer = TimedTrainer(
        model=str(options.model),
        reward_funcs=length_reward,
        args=config,
        train_dataset=Dataset.from_list(rows * options.steps),
        callbacks=[clock],
    )
    trainer.clock = clock
    trainer.train()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--answers", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--parts", type=int, default=1, help="of a batch, one after the other")
    parser.add_argument("--continuous-batching", action="store_true")
    parser.add_argument("--even", action="store_true", help="every answer has that many tokens")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        train(options, json.loads(options.prompts.read_text()), folder)


if __name__ == "__main__":
    main()
