"""Verifiers that misbehave as the answer says; the tests name them `module:function`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path


def obey(query: str, answer: str, reference: str | None) -> object:
    """Do what the answer says; `query` is a file for process ids."""
    match answer:
        case "hang":
            time.sleep(1000)
        case "hang in C":
            re.fullmatch(r"(a+)+b", "a" * 60)  # holds the interpreter's lock for ages
        case "crash":
            os._exit(3)
        case "exit":
            sys.exit(0)
        case "raise":
            raise ValueError("not today")
        case "text":
            return "1.0"
        case "none":
            return None
        case "object":
            return object()
        case "fraction":
            return Fraction(1, 2)
        case "nan":
            return float("nan")
        case "true":
            return True
        case "fork":
            os.fork()  # both return
        case "child" | "child then hang":
            child = subprocess.Popen(["sleep", "1000"])
            Path(query).write_text(f"{os.getpid()} {child.pid}")
            if answer != "child":
                time.sleep(1000)
        case "pid":
            return os.getpid()
    return 0.5


not_a_function = 3


def slow(query: str, answer: str, reference: str | None) -> float:
    """Take as many seconds as the answer says."""
    time.sleep(float(answer))
    return 1.0


def length(query: str, answer: str, reference: str | None) -> int:
    """The characters of all three texts."""
    return len(query) + len(answer) + len(reference or "")
