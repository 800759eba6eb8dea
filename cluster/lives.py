"""The lives of a run in one process.

Each life plays on from the last checkpoint with actors of its own. A guard that takes the run back
and a lost learner end a life and begin the next; everything else ends the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import signal
import sys
import time
from collections.abc import Sequence

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from cluster.claim import Announce
from cluster.connection import connect
from cluster.faults import RunError, Streak
from cluster.initial import InitialModel
from cluster.playing import Playing
from cluster.rollback import RollBackError, roll_back, settings_now
from cluster.scraping import Scraped
from cluster.signals import answering
from cluster.trackers import Tracker, open_trackers
from cluster.wiring import wire
from configs.errors import UserError
from configs.schema import RunConfig
from learner.errors import LearnerError

log = logging.getLogger(__name__)

STORE_FULL = (ObjectStoreFullError, OutOfDiskError)
STORE_REMEDY = (
    "Ray's object store on a node is full, and so is the disk that it spills to: ray memory and df"
    " show with what; free that, or start Ray there with a larger --object-store-memory"
)


class Lives:
    """Plays a run to its end, in as many lives as it takes."""

    def __init__(
        self,
        config: RunConfig,
        model: InitialModel,
        announce: Announce,
        seconds: dict[str, float],
        started: float,
    ) -> None:
        """`seconds` and `started` are those of the first life's `Playing`."""
        self._config = config
        self._model = model
        self._announce = announce
        self._seconds = seconds
        self._started = started
        self._losses = Streak(
            "losses of the learner without a checkpoint between them",
            "faults.learner_losses",
            config.faults.learner_losses,
        )
        self._sizes: dict[str, int] = {}
        self._scraped = Scraped(config)
        self._playing: Playing | None = None
        self._cleans_up = False
        self._asked = False

    async def live(self) -> None:
        """Play until the run ends, or is asked to."""
        main = asyncio.current_task()
        assert main is not None

        def ask(number: signal.Signals) -> None:
            if number == signal.SIGHUP:
                # The terminal is gone, and printing to it would end the run before it is saved.
                sys.stdout = sys.stderr = io.StringIO()
            if self._cleans_up:
                # Half a clean-up leaves processes; no other life begins after it.
                self._asked = True
            elif self._playing is None or not self._playing.ask_to_stop():
                # The second time, or before there is a game to save: at once.
                main.cancel()

        with (
            contextlib.closing(self._scraped),
            answering(ask),
            open_trackers(self._config) as trackers,
        ):
            while await self._goes_on(trackers):
                self._started, self._seconds = time.perf_counter(), {"base_model": 0.0}

    async def _goes_on(self, trackers: Sequence[Tracker]) -> bool:
        """Live one life; whether another begins after it."""
        config = settings_now(self._config)
        wired = wire(config, self._model.path)
        playing = self._playing = Playing(
            config,
            wired,
            self._model.identity,
            self._seconds,
            self._started,
            self._sizes,
            trackers,
            self._scraped,
        )
        began_with = playing.store.latest()
        try:
            await self._life(playing)
        except RollBackError as back:
            print(roll_back(config, back.alarm, playing.iteration))
        except (LearnerError, RunError, UserError) as error:
            if playing.store.latest() != began_with:
                self._losses.good()
            recovers = playing.game is None and self._losses.count > 0
            lost = isinstance(error, LearnerError) and playing.game is not None
            # What has never run is not lost, and would not be there the next time.
            if self._is_asked(playing) or not (lost or recovers):
                raise
            self._losses.bad(f"that of iteration {playing.iteration}: {error}")
            log.warning("%s; all actors start again, from the last checkpoint", error)
        else:
            return False
        self._sizes = {name: fleet.target for name, fleet in wired.fleets.items()}
        if self._is_asked(playing):
            print(f"Stopped; selfplay resume {config.run_dir} continues.")
            return False
        return True

    def _is_asked(self, playing: Playing) -> bool:
        return self._asked or playing.is_stopping

    async def _life(self, playing: Playing) -> None:
        """Start the actors, play, and end the actors, whatever happens."""
        try:
            playing.look_back()
            connect()
            playing.control.start()
            self._announce(ray.get_runtime_context().gcs_address, playing.control.name)
            await playing.play()
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        except (UserError, RollBackError):
            raise
        except Exception as error:
            # Whoever waited for the learner may have noticed its loss first.
            await playing.wired.learner.check(error)
            if isinstance(error, STORE_FULL):
                resume = f"selfplay resume {self._config.run_dir} goes on from the last checkpoint"
                raise RunError(f"{STORE_REMEDY}; {resume}") from None
            raise
        finally:
            self._cleans_up = True
            # From the last to the first, each whatever becomes of the others.
            async with contextlib.AsyncExitStack() as ends:
                ends.callback(self._announce, None, None)
                ends.callback(ray.shutdown)
                ends.callback(playing.close)
                ends.push_async_callback(playing.wired.stop)
                ends.push_async_callback(playing.control.stop)
            self._cleans_up = False
