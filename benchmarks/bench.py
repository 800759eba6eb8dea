"""`make bench`: what our layers cost over the bare libraries, and how long a publish takes.

    python -m benchmarks.bench [--config configs/quickstart.yaml] [--repeats 5] [a.b=c …]

Everything is measured in one run on one machine, by turns, after a warm-up, and written with all
samples to benchmarks/results/bench-<machine>.json:

- rollout_efficiency: tokens/s through the rollout actor ÷ those of a bare vLLM engine;
- learner_efficiency: trained tokens/s of a learner rank ÷ those of a bare Hugging Face loop;
- step_overhead: wall time of an iteration at staleness 0 ÷ the sum of its bare stages;
- weight_sync_seconds, weight_sync_bytes_per_second, publish_share of an iteration.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from actors.placing import thread_environment
from actors.records import GenerationRequest, Group, Rejected, Sampling
from actors.rollout import RolloutActor
from benchmarks import measure
from benchmarks.bare import BareEngine, LearnerPair
from benchmarks.shapes import SHAPES, random_model, random_prompts
from cluster.players import Challenger
from cluster.record import IterationRecord, StepOutcome
from cluster.run import connect, model_of
from cluster.seeds import Ticket
from cluster.wiring import Wired, wire
from configs.load import load
from configs.schema import RunConfig

WARM_UP = 2
QUERIES, ANSWERS, TOKENS = 8, 8, 128


def main() -> None:
    """Measure, print and write."""
    parser = measure.parser(__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("rollout", "learner", "game"), nargs="*")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = run(options, Path(scratch))
    for name, value in figures.items():
        print(f"{name:32} {value['median']:.4g} {value['unit']}")
    shape = "" if options.shape == "tiny" else f"-{options.shape}"
    measure.write(measure.RESULTS / f"bench-{measure.machine_name()}{shape}.json", figures)


def run(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All figures that were asked for."""
    wanted = options.only or ("rollout", "learner", "game")
    overrides = [*options.overrides, f"run_dir={scratch / 'run'}", "heldout=null"]
    overrides.append(f"iterations={WARM_UP + options.repeats}")
    config = load(options.config, overrides)
    played, _ = model_of(config) if "game" in wanted else ("", 0.0)
    connect()
    figures: dict[str, Any] = {}
    try:
        model = random_model(options.shape, scratch / "model")
        if "rollout" in wanted:
            figures |= rollout_figures(config, model, options.repeats)
        if "learner" in wanted:
            figures |= learner_figures(config, model, options.repeats)
        if "game" in wanted:
            figures |= asyncio.run(game_figures(config, played))
    finally:
        ray.shutdown()
    return figures


def rollout_figures(config: RunConfig, model: Path, repeats: int) -> dict[str, Any]:
    """The rollout actor against a bare engine: same prompts, seeds, lengths and settings."""
    settings = config.rollout
    environment = {"env_vars": thread_environment(settings.threads)}
    place = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "runtime_env": environment}
    # Any: Ray types a remote class by its constructor, and its handles by nothing that fits.
    actor: Any = ray.remote(RolloutActor)
    ours = actor.options(max_concurrency=100, **place).remote(
        str(model),
        settings,
        name="bench",
        metrics_host="127.0.0.1",
        transfer_backend="object_store",
    )
    engine: Any = ray.remote(BareEngine)
    bare = engine.options(**place).remote(str(model), settings)
    prompts = random_prompts(QUERIES)
    sampling = Sampling(max_tokens=TOKENS)
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
    for one in (ours, bare):
        ray.kill(one)
    return {
        "rollout_efficiency": measure.ratio(rates["ours"], rates["bare"]),
        "rollout_tokens_per_second": measure.figure(rates["ours"], "tokens/s"),
        "bare_engine_tokens_per_second": measure.figure(rates["bare"], "tokens/s"),
    }


def learner_figures(config: RunConfig, model: Path, repeats: int) -> dict[str, Any]:
    """A learner rank against a bare Hugging Face loop, in one process, by turns."""
    learner = config.learner
    environment = thread_environment(learner.threads)
    if not learner.gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    actor: Any = ray.remote(LearnerPair)
    place = {"num_cpus": learner.cpus, "num_gpus": learner.gpus}
    pair = actor.options(**place, runtime_env={"env_vars": environment}).remote(config, str(model))
    measured: Any = ray.get(pair.measure.remote(repeats, WARM_UP))
    ray.kill(pair)
    tokens, seconds = measured["tokens"], measured["seconds"]
    rates = {name: [tokens / s for s in samples] for name, samples in seconds.items()}
    return {
        "learner_efficiency": measure.ratio(rates["rank"], rates["bare"]),
        "learner_tokens_per_second": measure.figure(rates["rank"], "tokens/s"),
        "bare_loop_tokens_per_second": measure.figure(rates["bare"], "tokens/s"),
    }


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
    finally:
        await wired.stop()
    return _game_summary(records[WARM_UP:], stages[WARM_UP:])


async def bare_stages(
    wired: Wired, iteration: int, groups: list[Group], rejected: list[Rejected]
) -> dict[str, float]:
    """Seconds of each stage of an iteration played again, one after the other."""
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
    seconds["train"] = await _timed(wired.learner.step(groups, iteration))
    started = time.perf_counter()
    report = await wired.publisher.publish(wired.learner.steps, wired.policy.fleet.serving())
    seconds["publish"] = time.perf_counter() - started
    return seconds | {"publish_bytes": report.bytes}


def _again(wired: Wired, query: Any) -> GenerationRequest:
    challenger = getattr(wired.source, "challenger", None)
    assert isinstance(challenger, Challenger)
    made = query.completion
    return GenerationRequest(made.prompt_token_ids, challenger.sampling, made.seed)


async def _timed(work: Any) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def _game_summary(records: list[IterationRecord], stages: list[dict[str, float]]) -> dict[str, Any]:
    whole = [record.seconds["iteration"] for record in records]
    bare = [sum(s for name, s in one.items() if name != "publish_bytes") for one in stages]
    publish = [record.seconds["publish"] for record in records]
    by_stage = {
        f"bare_{name}_seconds": measure.figure([one[name] for one in stages], "s")
        for name in stages[0]
        if name != "publish_bytes"
    }
    size = statistics.median(one["publish_bytes"] for one in stages)
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
