"""Training problems as a data set, for learning from data (GRPO) beside self-play.

They come from the training split, which shares no problem with the development and held-out ones,
however it is put (`language.split_of`).
"""

import json
import os
from pathlib import Path

from playground import language

COUNT, SEED = 2000, 0


def write(path: Path, count: int = COUNT) -> None:
    """Write `count` problems as JSONL, `query` and `answer` in each row, whole or not at all."""
    made = language.problems("train", count, SEED)
    rows = [{"query": problem.text, "answer": problem.answer} for problem in made]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.new")
    unfinished.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    unfinished.replace(path)
