"""A run's parts: the safety classifier reaches the gate, and at the end no process is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors.gate import Gate
from actors.records import Query
from actors.roles import PromptFile
from cluster.wiring import Wired, wire
from configs.load import load
from configs.schema import GateConfig
from tests.actors.classifiers import TEXTS, save_words
from tests.conftest import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def test_a_query_is_judged_by_the_safety_classifier_of_a_fleet_of_its_own(
    ray_session: None, tiny_model: Callable[[bool], Path], tmp_path: Path
):
    model = tiny_model(True)
    settings = ["model.make=null", f"model.path={model}", "gate.task_verifier=null"]
    labels = "labels: [weapons, drugs], max_tokens: 32, fleet: {cpus: 0}"
    safety = f"gate.safety={{model: {save_words(tmp_path)}, {labels}}}"
    wired = wire(load(QUICKSTART, [*settings, safety]), str(model))
    gate = wired.prompts.gate
    queries = [Query(str(n), text) for n, text in enumerate(TEXTS)]

    async def reasons() -> list[str | None]:
        fleet = wired.fleets["safety"]
        await fleet.start()
        try:
            said = await gate.classified(queries)
            return [await gate.check(q, set(), s) for q, s in zip(queries, said, strict=True)]
        finally:
            await fleet.stop()

    assert asyncio.run(reasons()) == [None, "unsafe_weapons", "unsafe_drugs", "unsafe_drugs"]


def test_the_end_of_a_run_ends_the_process_of_its_gate():
    config = GateConfig(task_verifier="tests.actors.task_verifiers:obey")
    gate = Gate(config, PromptFile("{{task}} {{template}}", ("task", "template")), lambda _: True)
    absent: Any = None
    learner: Any = SimpleNamespace(stop=lambda: None)
    prompts: Any = SimpleNamespace(gate=gate)
    wired = Wired("", learner, {}, absent, absent, absent, absent, [], prompts)

    async def run() -> str | None:
        reason = await gate.check(Query("g0", "process"), set())
        await wired.stop()
        return reason

    pid = str(asyncio.run(run())).removeprefix("task_")
    assert pid.isdecimal()
    assert not Path(f"/proc/{pid}").exists()
