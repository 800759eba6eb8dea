"""`make bench`: what our layers cost over the bare libraries, and how long a publish takes.

    python -m benchmarks.bench [--config FILE] [--shape SHAPE] [--repeats 5] [a.b=c …]

Everything is measured in one run on one machine, after a warm-up, and written with all samples to
benchmarks/results/bench-<machine>.json:

- rollout_efficiency: tokens/s through the rollout actor ÷ those of a bare vLLM engine;
- learner_efficiency: trained tokens/s of a learner rank ÷ those of a bare Hugging Face loop;
- step_overhead: wall time of an iteration at staleness 0 ÷ the sum of its bare stages;
- weight_sync_seconds, weight_sync_bytes_per_second, publish_share of an iteration.

Without a GPU: the quickstart's configuration and game, the first two figures on a small random
model. With one: configs/one-gpu.yaml without its judge and its reward model, everything on random
models in the shapes of Llama-3.2-1B and -3B, one after the other, each with a file of its own. A
configuration that is named is taken as it is. What is compared runs by turns; but on a GPU the
learner rank and the bare loop, which do not fit it together, run one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from actors.member import Post
from actors.placing import thread_environment
from actors.records import GenerationRequest, Group, Rejected, Sampling
from actors.rollout import RolloutActor
from benchmarks import measure
from benchmarks.bare import BareEngine, Kind, LearnerLoops
from benchmarks.shapes import (
    LLAMA,
    QUICKSTART,
    SHAPES,
    STOP,
    Lengths,
    random_model,
    random_prompts,
)
from cluster.connection import connect
from cluster.initial import find_model
from cluster.plan import make_plan, nodes_from
from cluster.players import Challenger
from cluster.record import IterationRecord, StepOutcome
from cluster.seeds import Ticket
from cluster.wiring import Wired, backend_of, wire
from configs.errors import UserError
from configs.load import load
from configs.schema import RunConfig

WARM_UP = 2
QUERIES, ANSWERS = 8, 8
BESIDE = 0.4
"""Share of a GPU's memory that each of two engines takes which stand side by side."""
END_SECONDS = 60.0
ONE_GPU = (
    "algorithm=lsp_zero",
    "challenger.reward=minus_v",
    f"challenger.sampling={{max_tokens: {LLAMA.sampled}, stop: ['{STOP}']}}",
    f"solver.sampling={{max_tokens: {LLAMA.sampled}}}",
    "rewards.quality=null",
    "rewards.parts=[{kind: verifier, name: length, function: 'benchmarks.length:length_reward'}]",
)
"""What configs/one-gpu.yaml needs to be played without a download: a random model writes no verdict
that can be read, and there is no reward model."""


@dataclass(frozen=True)
class Work:
    """What is measured in one go."""

    config: Path
    overrides: tuple[str, ...]
    shape: str
    lengths: Lengths
    plays_shape: bool
    """Whether the game too is played by the random model, and not by the configuration's."""

    def result(self) -> Path:
        """The file its figures go to."""
        plain = self.shape == "tiny" and not self.plays_shape
        shape = "" if plain else f"-{self.shape}"
        return measure.RESULTS / f"bench-{measure.machine_name()}{shape}.json"


def main() -> None:
    """Measure, print and write."""
    parser = measure.parser(__doc__)
    parser.add_argument("--config", type=Path, help="default: by the machine, see above")
    parser.add_argument("--shape", choices=SHAPES, help="default: by the machine, see above")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("rollout", "learner", "game"), nargs="*")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    options = parser.parse_args()
    for work in works(options, torch.cuda.is_available()):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                figures = run(work, options, Path(scratch))
            except UserError as error:
                sys.exit(f"{work.shape}: {error}")
        for name, value in figures.items():
            print(f"{name:32} {value['median']:.4g} {value['unit']}")
        measure.write(work.result(), figures, options.only)


def works(options: argparse.Namespace, on_gpu: bool) -> list[Work]:
    """What the command line and the machine come to."""
    overrides = tuple(options.overrides)
    if on_gpu and options.config is None:
        shapes = [options.shape] if options.shape else ["llama-3.2-1b", "llama-3.2-3b"]
        one_gpu, overrides = Path("configs/one-gpu.yaml"), (*ONE_GPU, *overrides)
        return [Work(one_gpu, overrides, shape, LLAMA, plays_shape=True) for shape in shapes]
    config = options.config or Path("configs/quickstart.yaml")
    return [Work(config, overrides, options.shape or "tiny", QUICKSTART, plays_shape=False)]


def run(work: Work, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All figures that were asked for.

    Raises UserError where the configuration is wrong or this machine is too small for it.
    """
    wanted = options.only or ("rollout", "learner", "game")
    model = random_model(work.shape, scratch / "model", speaks=work.plays_shape)
    overrides = [*work.overrides, "heldout=null", f"iterations={WARM_UP + options.repeats}"]
    if work.plays_shape:
        overrides.append(f"model.path={model}")
    config = load(work.config, overrides)
    make_plan(config, nodes_from(None)[1])
    # Beside the configuration's own run directory, where it may be already.
    played = find_model(config).path if "game" in wanted else ""
    config = config.model_copy(update={"run_dir": scratch / "run"})
    connect()
    figures: dict[str, Any] = {}
    try:
        if "rollout" in wanted:
            figures |= rollout_figures(config, model, work.lengths, options.repeats)
        if "learner" in wanted:
            figures |= learner_figures(config, model, work.lengths, options.repeats)
        if "game" in wanted:
            figures |= asyncio.run(game_figures(config, played))
    finally:
        ray.shutdown()
    return figures


def rollout_figures(
    config: RunConfig, model: Path, lengths: Lengths, repeats: int
) -> dict[str, Any]:
    """The rollout actor against a bare engine: same prompts, seeds, lengths and settings."""
    settings = config.rollout
    place: dict[str, Any] = {
        "num_cpus": settings.cpus,
        "num_gpus": 0,
        "runtime_env": {"env_vars": thread_environment(settings.threads)},
    }
    if settings.gpus:
        settings = settings.model_copy(update={"memory_fraction": BESIDE})
        place["num_gpus"] = 0.5
    # Any: Ray types a remote class by its constructor, and its handles by nothing that fits.
    actor: Any = ray.remote(RolloutActor)
    ours = actor.options(max_concurrency=100, **place).remote(
        str(model),
        settings,
        post=Post("bench", "127.0.0.1"),
        transfer_backend=backend_of(config),
        colocated=config.colocate,
    )
    # An engine that starts measures the GPU's free memory: no other may start meanwhile.
    ray.get(ours.describe.remote())
    engine: Any = ray.remote(BareEngine)
    bare = engine.options(**place).remote(str(model), settings)
    ray.get(bare.describe.remote())
    prompts = random_prompts(QUERIES)
    sampling = Sampling(max_tokens=lengths.sampled)
    groups = [
        [GenerationRequest(prompt, sampling, 1000 * i + j) for j in range(ANSWERS)]
        for i, prompt in enumerate(prompts)
    ]
    tokens: dict[str, int] = {}

    def through_actor() -> None:
        made = ray.get([ours.generate.remote(group) for group in groups])
        tokens["ours"] = sum(len(answer.token_ids) for group in made for answer in group)

    def through_vllm() -> None:
        tokens["bare"] = ray.get(bare.generate.remote([r for group in groups for r in group]))

    runs = {"ours": through_actor, "bare": through_vllm}
    seconds = measure.interleaved(runs, repeats, WARM_UP)
    rates = {name: [tokens[name] / s for s in seconds[name]] for name in runs}
    end(ours, bare)
    return {
        "rollout_efficiency": measure.ratio(rates["ours"], rates["bare"]),
        "rollout_tokens_per_second": measure.figure(rates["ours"], "tokens/s"),
        "bare_engine_tokens_per_second": measure.figure(rates["bare"], "tokens/s"),
    }


def learner_figures(
    config: RunConfig, model: Path, lengths: Lengths, repeats: int
) -> dict[str, Any]:
    """A learner rank against a bare Hugging Face loop."""
    learner = config.learner
    environment = thread_environment(learner.threads)
    if not learner.gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    actor: Any = ray.remote(LearnerLoops)
    place = {"num_cpus": learner.cpus, "num_gpus": learner.gpus}
    turns: list[tuple[Kind, ...]] = [("rank",), ("bare",)] if learner.gpus else [("rank", "bare")]
    rates: dict[str, list[float]] = {}
    for kinds in turns:
        loops = actor.options(**place, runtime_env={"env_vars": environment}).remote(
            config, str(model), lengths, kinds
        )
        measured: Any = ray.get(loops.measure.remote(repeats, WARM_UP))
        end(loops)
        for kind, seconds in measured["seconds"].items():
            rates[kind] = [measured["tokens"] / s for s in seconds]
    return {
        "learner_efficiency": measure.ratio(rates["rank"], rates["bare"]),
        "learner_tokens_per_second": measure.figure(rates["rank"], "tokens/s"),
        "bare_loop_tokens_per_second": measure.figure(rates["bare"], "tokens/s"),
    }


def end(*actors: Any) -> None:
    """End actors, and wait until their processes have gone and their memory with them."""
    pids = [about["pid"] for about in ray.get([actor.describe.remote() for actor in actors])]
    for actor in actors:
        ray.kill(actor)
    deadline = time.monotonic() + END_SECONDS
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {pids} have not ended {END_SECONDS:g} s after the kill")
        time.sleep(0.05)


class Kept:
    """A ledger in memory: what each iteration was played with."""

    def __init__(self) -> None:
        self.iterations: list[tuple[list[Group], list[Rejected]]] = []

    def write(
        self,
        iteration: int,
        groups: Sequence[Group],
        rejected: Sequence[Rejected],
        outcome: StepOutcome,
    ) -> None:
        """Keep the games."""
        del iteration, outcome
        self.iterations.append((list(groups), list(rejected)))


async def game_figures(config: RunConfig, model_path: str) -> dict[str, Any]:
    """Real iterations, then the stages of each of them by themselves."""
    wired = wire(config, model_path)
    kept, records = Kept(), list[IterationRecord]()
    try:
        await wired.start()
        await wired.policy.publish(0)
        game = wired.game(config, kept)
        async for record in game.play():
            records.append(record)
        stages = [await bare_stages(wired, i, *kept.iterations[i]) for i in range(len(records))]
        elements = sum((await wired.learner.tensor_sizes()).values())
    finally:
        await wired.stop()
    width = getattr(torch, config.rollout.dtype).itemsize
    return _game_summary(records[WARM_UP:], stages[WARM_UP:], elements * width)


async def bare_stages(
    wired: Wired, iteration: int, groups: list[Group], rejected: list[Rejected]
) -> dict[str, float]:
    """Seconds of each stage of an iteration played again, one after the other.

    Engines that share their GPU with the learner go to sleep for the training step, which is a
    stage too, and wake up for the publish, which counts in it: as in the game.
    """
    seconds: dict[str, float] = {}
    queries = [one.query for one in [*groups, *rejected] if one.query.completion is not None]
    if queries:
        seconds["queries"] = await _timed(
            wired.policy.generate([_again(wired, q) for q in queries])
        )
    answers = [
        GenerationRequest(a.prompt_token_ids, wired.solver.sampling, a.seed)
        for group in groups
        for a in group.answers
    ]
    seconds["answers"] = await _timed(wired.policy.generate(answers))
    scorings = [
        scorer.score(Ticket.parse(group.query.group_id), group.query, group.answers)
        for group in groups
        for scorer in wired.scorers
    ]
    seconds["rewards"] = await _timed(asyncio.gather(*scorings))
    started = time.perf_counter()
    async with wired.policy.weights_move():
        if wired.policy.colocated:
            seconds["sleep"] = time.perf_counter() - started
        seconds["train"] = await _timed(wired.learner.step(groups, iteration))
        seconds["publish"] = await _timed(wired.policy.publish(wired.learner.steps))
    return seconds


def _again(wired: Wired, query: Any) -> GenerationRequest:
    challenger = getattr(wired.source, "challenger", None)
    assert isinstance(challenger, Challenger)
    made = query.completion
    return GenerationRequest(made.prompt_token_ids, challenger.sampling, made.seed)


async def _timed(work: Any) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def _game_summary(
    records: list[IterationRecord], stages: list[dict[str, float]], size: int
) -> dict[str, Any]:
    whole = [record.seconds["iteration"] for record in records]
    bare = [sum(one.values()) for one in stages]
    publish = [record.seconds["publish"] for record in records]
    by_stage = {
        f"bare_{name}_seconds": measure.figure([one[name] for one in stages], "s")
        for name in stages[0]
    }
    return {
        "step_overhead": measure.ratio(whole, bare),
        "iteration_seconds": measure.figure(whole, "s"),
        "weight_sync_seconds": measure.figure(publish, "s"),
        "weight_sync_bytes_per_second": measure.figure([size / s for s in publish], "bytes/s"),
        "publish_share": measure.ratio(publish, whole),
        **by_stage,
    }


if __name__ == "__main__":
    main()
