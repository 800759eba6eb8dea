"""The Ray that a command plays on."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from cluster.plan import ray_resources, this_machine
from cluster.token import make_token, unreachable

log = logging.getLogger(__name__)

RAY_STARTS = 3
"""Tries to start a Ray of our own."""


def connect() -> None:
    """Connect to the cluster this job runs on, or start a Ray of our own on this machine."""
    # Ray's workers import the project by its folder's path.
    environment = {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": environment},
    }
    if "RAY_ADDRESS" not in os.environ:
        make_token()
        # What the plan counted, which Ray may count otherwise.
        options |= {"address": "local", "include_dashboard": False}
        options |= ray_resources(this_machine())
    before = signal.getsignal(signal.SIGTERM)
    try:
        _init(options)
    except (ConnectionError, AuthenticationError) as error:
        if "RAY_ADDRESS" not in os.environ:
            raise
        raise unreachable(f"RAY_ADDRESS {os.environ['RAY_ADDRESS']}", error) from error
    finally:
        # Ray's own handler would end the process on the spot.
        signal.signal(signal.SIGTERM, before)


def _init(options: dict[str, Any]) -> None:
    """Start or reach Ray; a start is tried again, since Ray gives parts of its own only 15 s."""
    for left in reversed(range(RAY_STARTS)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
            log.warning("Ray did not start in its time, as on a machine under load: trying again")
