"""The environment that an actor's process is started with."""

from __future__ import annotations


def thread_environment(threads: int | None) -> dict[str, str]:
    """Return the variables that give a process so many OpenMP threads.

    None leaves the number to Ray, which takes the actor's reserved CPUs. Waiting threads sleep:
    actors share cores, and one that spins takes them from another that computes.
    """
    count = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | count
