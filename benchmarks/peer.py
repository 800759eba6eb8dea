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
(benchmarks/peer_trl.py), first with each of `SETTINGS` for a few steps; at the fastest of them it
and we then play by turns of a few steps, so that a slow minute is shared by both and each has its
caches warm. The result has both with their split by phase and the lengths of their answers.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import tempfile
import threading
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray

from benchmarks import measure
from benchmarks.bench import ANSWERS, QUERIES, Kept
from benchmarks.shapes import QUICKSTART, random_model
from cluster.connection import connect
from cluster.initial import find_model
from cluster.record import IterationRecord
from cluster.wiring import wire
from configs.load import load
from configs.schema import RunConfig
from playground.language import development

SETTINGS = {
    "float32": ["--dtype", "float32"],
    "bfloat16": ["--dtype", "bfloat16"],
    "float32 in four parts": ["--dtype", "float32", "--parts", "4"],
    "float32 continuous batching": ["--dtype", "float32", "--continuous-batching"],
}
"""TRL's, of which the fastest on this machine is played."""
TRIED = 2
"""Steps that a setting is judged by, after one to warm up."""
TURN = 4
"""Our iterations, then as many steps of TRL."""
STEP_DEADLINE_S = 600
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
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for work in works(Path(folder)):
            scratch = Path(folder) / work.name
            scratch.mkdir(exist_ok=True)
            figures[work.name] = compare(scratch, work, options.peer_python, options.turns)
    measure.write(measure.RESULTS / f"peer-{measure.machine_name()}.json", figures)


def compare(scratch: Path, work: Work, python: Path, turns: int) -> dict[str, Any]:
    """Answers/s of both on one work, and their ratio.

    Raises RuntimeError where TRL takes no step at any of its settings.
    """
    tried = {name: tried_steps(python, scratch, work, name) for name in SETTINGS}
    able = {name: statistics.median(seconds) for name, seconds in tried.items() if seconds}
    if not able:
        raise RuntimeError(f"TRL takes no step at any of its settings: {', '.join(SETTINGS)}")
    fastest = min(able, key=lambda name: able[name])
    steps = (1 + turns) * TURN
    connect()
    try:
        with Trl(python, scratch, work, fastest, steps) as trl:
            game = by_turns(our_game(scratch, work, steps), str(work.model), trl)
            our_records, trl_steps = asyncio.run(game)
    finally:
        ray.shutdown()
    # The first turn warms both up.
    ours, theirs = our_figures(work, our_records[TURN:]), trl_figures(work, trl_steps[TURN:])
    below = theirs["answers_per_second"]["samples"]
    if work.even:
        # Some of ours end by themselves, which TRL's are not let.
        below = [each * work.tokens / ours["tokens_per_answer"] for each in below]
    ratio = measure.ratio(ours["answers_per_second"]["samples"], below)
    print(f"{work.name}: {ratio['median']:.2f} times the answers/s of TRL at {fastest}", flush=True)
    return {
        "answers_per_second_ratio": ratio,
        "ours": ours,
        "trl": {"setting": fastest, **theirs, "tried_step_seconds": tried},
        "work": {"queries": len(work.prompts), "answers": work.answers, "tokens": work.tokens},
    }


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


def our_game(scratch: Path, work: Work, iterations: int) -> RunConfig:
    """GRPO on the work's prompts."""
    data = scratch / "prompts.jsonl"
    data.write_text("".join(json.dumps({"query": prompt}) + "\n" for prompt in work.prompts))
    engine = {"dtype": "float32", "context": 512, "eager": True, "cpus": 0.5, "threads": 2}
    return RunConfig.model_validate(
        {
            "algorithm": "grpo",
            "run_dir": scratch / "run",
            "iterations": iterations,
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


class Trl:
    """TRL's trainer at one of its settings, in a process that takes a step when it is asked to."""

    def __init__(self, python: Path, scratch: Path, work: Work, setting: str, steps: int) -> None:
        prompts = scratch / "prompts.json"
        prompts.write_text(json.dumps(work.prompts))
        command = [
            str(python), "benchmarks/peer_trl.py",
            "--model", str(work.model), "--prompts", str(prompts), "--answers", str(work.answers),
            "--tokens", str(work.tokens), "--steps", str(steps),
            *(["--even"] if work.even else []), *SETTINGS[setting],
        ]  # fmt: skip
        self.setting = setting
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Its input ends, and with it the process.
        try:
            self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def step(self) -> dict[str, float]:
        """Take a step; its seconds, those of its generation, and the tokens of its answers.

        Raises RuntimeError where the process has ended; what it said is on standard error.
        """
        assert self._process.stdin
        assert self._process.stdout
        deadline = threading.Timer(STEP_DEADLINE_S, self._process.kill)
        deadline.start()
        try:
            with suppress(BrokenPipeError):
                self._process.stdin.write("\n")
                self._process.stdin.flush()
            reply = self._process.stdout.readline()
        finally:
            # Interrupted by the keyboard, this process would wait for it to its end.
            deadline.cancel()
        if not reply:
            raise RuntimeError(f"TRL at {self.setting} ended with code {self._process.wait()}")
        return json.loads(reply)


def tried_steps(python: Path, scratch: Path, work: Work, setting: str) -> list[float] | None:
    """Seconds of a few steps at a setting, None where it takes none."""
    try:
        with Trl(python, scratch, work, setting, 1 + TRIED) as trl:
            seconds = [trl.step()["step"] for _ in range(1 + TRIED)][1:]
    except RuntimeError as error:
        print(f"{work.name}: {error}", flush=True)
        return None
    print(f"{work.name}: TRL at {setting}: {statistics.median(seconds):.2f} s a step", flush=True)
    return seconds


async def by_turns(
    config: RunConfig, model: str, trl: Trl
) -> tuple[list[IterationRecord], list[dict[str, float]]]:
    """A turn of ours, a turn of TRL's, and so on to the end of the game.

    TRL's steps keep this thread, so that our next round does not begin beside them.
    """
    wired = wire(config, model)
    records, steps = list[IterationRecord](), list[dict[str, float]]()
    try:
        await wired.start()
        await wired.policy.publish(0)
        async with aclosing(wired.game(config, Kept()).play()) as played:
            async for record in played:
                records.append(record)
                if len(records) % TURN == 0:
                    steps.extend(trl.step() for _ in range(TURN))
    finally:
        await wired.stop()
    return records, steps


def our_figures(work: Work, records: list[IterationRecord]) -> dict[str, Any]:
    """Of whole iterations."""
    seconds = [record.seconds for record in records]
    return {
        "answers_per_second": per_second(work, [each["iteration"] for each in seconds]),
        "tokens_per_answer": statistics.mean(record.answer_tokens for record in records),
        **{
            f"{phase}_seconds": measure.figure([each[phase] for each in seconds], "s")
            for phase in ("wait", "train", "publish", "iteration")
        },
    }


def trl_figures(work: Work, steps: list[dict[str, float]]) -> dict[str, Any]:
    """Of TRL's steps."""
    return {
        "answers_per_second": per_second(work, [step["step"] for step in steps]),
        "tokens_per_answer": statistics.mean(step["tokens"] for step in steps),
        "longest_answer": measure.figure([step["longest"] for step in steps], "tokens"),
        **{
            f"{phase}_seconds": measure.figure([step[phase] for step in steps], "s")
            for phase in ("generation", "step")
        },
    }


def per_second(work: Work, seconds: list[float]) -> dict[str, Any]:
    """Answers/s of each turn, from the seconds of all steps."""
    answers = TURN * len(work.prompts) * work.answers
    turns = [sum(seconds[i : i + TURN]) for i in range(0, len(seconds), TURN)]
    return measure.figure([answers / turn for turn in turns], "1/s")


if __name__ == "__main__":
    main()
