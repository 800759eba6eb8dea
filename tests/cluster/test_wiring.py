"""The end of a run's parts: no process is left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors.gate import Gate
from actors.records import Query
from actors.roles import PromptFile
from cluster.wiring import Wired
from configs.schema import GateConfig


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
