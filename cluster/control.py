"""A live run as others reach it: a named Ray actor that carries questions to the driver.

The driver waits for the next question and answers it in its own loop, where the run's state is;
whoever asks waits for that answer. All of it goes through Ray's own channel, and ends with the
driver, whose actor it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.claim import Driver, living_driver
from cluster.token import unreachable
from configs.errors import UserError
from configs.load import RESOLVED

log = logging.getLogger(__name__)

NAMESPACE = "selfplay"
ANSWER_DEADLINE_S = 60.0
"""For an answer of the driver, which may be writing a checkpoint."""
MOST_QUESTIONS = 100
RESTART_S = 1.0
"""Between looks for an actor that starts again."""

Handler = Callable[..., Awaitable[Any]]


class ControlActor:
    """Between the driver and whoever asks; it knows nothing of what is asked."""

    def __init__(self) -> None:
        self._questions: asyncio.Queue[tuple[str, str, dict[str, Any]]] = asyncio.Queue()
        self._answers: dict[str, asyncio.Future[tuple[bool, Any]]] = {}

    async def ask(self, what: str, arguments: dict[str, Any]) -> tuple[bool, Any]:
        """Have the driver do `what`; (True, its answer) or (False, a sentence for the user)."""
        # No number: an actor that starts again must not take an old answer for a new one.
        mark = uuid.uuid4().hex
        answer = self._answers[mark] = asyncio.get_running_loop().create_future()
        await self._questions.put((mark, what, arguments))
        try:
            return await answer
        finally:
            del self._answers[mark]

    async def next(self) -> tuple[str, str, dict[str, Any]]:
        """The next question: its mark, what, and the arguments. For the driver."""
        return await self._questions.get()

    async def answer(self, mark: str, good: bool, content: Any) -> None:
        """Answer a question, unless nobody waits for it any more. For the driver."""
        future = self._answers.get(mark)
        if future is not None and not future.done():
            future.set_result((good, content))

    async def ended(self) -> None:
        """Never returns: a call that fails tells that the driver is gone."""
        await asyncio.Event().wait()


class Control:
    """The driver's end: answers questions by its handlers, from `start` to `stop`."""

    def __init__(self, run_dir: Path, handlers: Mapping[str, Handler]) -> None:
        """A handler takes keyword arguments; a UserError of it is told to who asked."""
        self.name = str(run_dir.absolute())
        self._handlers = handlers
        self._actor: Any = None
        self._serving: asyncio.Task[None] | None = None
        self._asked: ray.ObjectRef[Any] | None = None
        """The call that waits for the next question."""

    def start(self) -> None:
        """Be found from now on."""
        actor: Any = ray.remote(ControlActor)
        here = ray.get_runtime_context().get_node_id()
        self._actor = actor.options(
            name=self.name,
            namespace=NAMESPACE,
            num_cpus=0,
            max_concurrency=MOST_QUESTIONS,
            max_restarts=-1,
            # A question to an actor that starts again is asked again.
            max_task_retries=-1,
            # Elsewhere it would be lost with a node that the run can do without.
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        ).remote()
        self._serving = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """Be found no longer."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        with contextlib.suppress(RayError):
            if self._asked is not None:
                # Ray would tell the terminal of a call that it means to try again.
                ray.cancel(self._asked)
            if self._actor is not None:
                ray.kill(self._actor)

    async def _serve(self) -> None:
        while True:
            try:
                asked = self._asked = self._actor.next.remote()
                mark, what, arguments = await asked
                await self._actor.answer.remote(mark, *await self._answered(what, arguments))
            except RayActorError as error:
                log.warning("control: its actor is lost and starts again: %s", error)
                await asyncio.sleep(RESTART_S)

    async def _answered(self, what: str, arguments: dict[str, Any]) -> tuple[bool, Any]:
        try:
            return True, await self._handlers[what](**arguments)
        except UserError as error:
            return False, str(error)
        except Exception as error:
            # A question must not end the run, nor leave who asked without an answer.
            log.exception("control: %s %s", what, arguments)
            return False, f"the run could not do {what}: {type(error).__name__}: {error}"


def ask(run: str, what: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Ask a live run, named by its directory or by the name of that; return the driver's answer.

    Raises UserError where it is not live, cannot be reached, or refuses.
    """
    with _connected(run) as actor:
        try:
            reply = actor.ask.remote(what, dict(arguments or {}))
            good, content = ray.get(reply, timeout=ANSWER_DEADLINE_S)
        except RayActorError:
            raise UserError(f"{run} has ended just now") from None
        except TimeoutError:
            raise UserError(
                f"{run} has not answered for {ANSWER_DEADLINE_S:.0f} s: see its logs/driver.log"
            ) from None
    if not good:
        raise UserError(content)
    return content


def stop_elsewhere(run: str, deadline_s: float) -> None:
    """Ask a live run on another host to save and end; return when its driver is gone."""
    with _connected(run) as actor:
        try:
            good, content = ray.get(actor.ask.remote("stop", {}), timeout=ANSWER_DEADLINE_S)
            if not good:
                raise UserError(content)
            ray.get(actor.ended.remote(), timeout=deadline_s)
        except RayActorError:
            return
        except TimeoutError:
            raise UserError(f"{run} has not ended within {deadline_s:.0f} s: see its log") from None


@contextlib.contextmanager
def _connected(run: str) -> Any:
    """Connect to the Ray of a live run; gives its control actor."""
    name, address = _place(run)
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, RayError) as error:
        raise unreachable(f"the Ray cluster of {run} ({address})", error) from None
    try:
        yield _found(run, name)
    finally:
        ray.shutdown()


def _place(run: str) -> tuple[str | None, str]:
    """(the actor's name where it is known, the address of its Ray)."""
    if not (Path(run) / RESOLVED).is_file():
        return None, os.environ.get("RAY_ADDRESS", "auto")
    driver: Driver | None = living_driver(Path(run))
    if driver is None:
        raise UserError(f"{run} is not running: selfplay resume {run} continues it")
    if driver.ray is None:
        raise UserError(f"{run} is starting: ask again when its actors are up")
    return driver.control, driver.ray


def _found(run: str, name: str | None) -> Any:
    # Of this namespace, which is the connection's.
    living = ray.util.list_named_actors()
    matching = [one for one in living if name == one or (name is None and _is_called(run, one))]
    if len(matching) == 1:
        with contextlib.suppress(ValueError):
            return ray.get_actor(matching[0], namespace=NAMESPACE)
    if matching:
        raise UserError(f"several runs are called {run}: name one by its directory: {matching}")
    raise UserError(f"{run} is no live run of this Ray cluster; there are {living or 'none'}")


def _is_called(run: str, name: str) -> bool:
    return run.rstrip("/") == name or run == Path(name).name
