"""A task verifier that misbehaves as the query says; the tests name it `module:function`."""

from __future__ import annotations

import os
import time


def obey(query: str) -> object:
    """Do what the query says; other queries are tasks where their length is even."""
    match query:
        case "hang":
            time.sleep(1000)
        case "crash":
            os._exit(3)
        case "raise":
            raise ValueError(query)
        case "true":
            return True
        case "process":
            return str(os.getpid())
    return None if len(query) % 2 == 0 else "odd"
