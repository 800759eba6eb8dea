"""The judge's two texts, pure: the request for a pair of answers, and the verdict in its reply.

Both answers are written by models that gain by the verdict. So neither can leave its pair of tags
in the prompt, and only one exact form counts as a verdict.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.roles import PromptFile
from configs.errors import UserError
from evaluation.alpaca.config import ChatJudgeConfig
from evaluation.alpaca.outputs import Pair
from evaluation.alpaca.store import Reply
from evaluation.alpaca.verdicts import DRAW

SLOTS = ("instruction", "output_1", "output_2")
OURS = Path(__file__).parent / "prompts"
"""One prompt for each kind of verdict."""

_VERDICT = re.compile(r"<verdict>\s*(1|2|tie)\s*</verdict>\s*\Z")
_ANY_TAG = re.compile(r"<\s*/?\s*verdict\b", re.IGNORECASE)
_PREFERENCES = {"1": 1.0, "2": 2.0, "tie": DRAW}


def is_switched(instruction: str) -> bool:
    """Whether the judge sees the outputs of this instruction in the other order.

    AlpacaEval's choice with its seed 0, which is drawn from the instruction alone.
    """
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True], k=1)[0]


class PairwisePrompt:
    """The prompt around an instruction and two outputs."""

    def __init__(self, config: ChatJudgeConfig) -> None:
        """Read the prompt file; None is ours.

        Raises:
            UserError: The file cannot be read, lacks a slot, or does not ask for the verdict in
                the form in which it will be read.
        """
        path = config.prompt or OURS / f"{config.verdict}.txt"
        self._file = PromptFile.load(path, SLOTS)
        self.template = self._file.text
        """The whole prompt, with its slots."""
        wording = " ".join(self._file.wording)
        wanted = ["verdict"] if config.verdict == "tag" else list(config.labels)
        for word in wanted:
            if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", wording):
                raise UserError(
                    f"{path}: never says {word}, which the judge is to answer with (judge.verdict"
                    f" is {config.verdict}): ask for it, or change judge.verdict"
                )
        tags = re.findall(r"<(\w+)>\s*\{\{(?:" + "|".join(SLOTS) + r")\}\}", self._file.text)
        names = "|".join(map(re.escape, tags))
        self._closing = re.compile(rf"<(?=\s*/\s*(?:{names})\b)", re.IGNORECASE) if tags else None

    def text(self, pair: Pair) -> str:
        """The prompt for a pair, in the order that AlpacaEval shows it in."""
        first, second = pair.output_1, pair.output_2
        if is_switched(pair.instruction.text):
            first, second = second, first
        texts = {"instruction": pair.instruction.text, "output_1": first, "output_2": second}
        pieces = self._file.fill({slot: self._held_in(text) for slot, text in texts.items()})
        return "".join(piece for piece in pieces if isinstance(piece, str))

    def _held_in(self, text: str) -> str:
        """The text with every closing tag of the prompt's pairs broken, by a look-alike of `<`."""
        return self._closing.sub("‹", text) if self._closing else text


def request_body(config: ChatJudgeConfig, prompt: str) -> dict[str, Any]:
    """The whole request of one verdict, as it is sent."""
    body: dict[str, Any] = {
        "model": config.model,
        "messages": [{"role": "user", "content": prompt}],
        config.limit_name: config.token_limit,
    }
    if config.temperature is not None:
        body["temperature"] = config.temperature
    if config.verdict == "logprobs":
        body |= {"logprobs": True, "top_logprobs": config.top_logprobs}
    return body | config.extra_body


def preference(config: ChatJudgeConfig, instruction: str, reply: Reply) -> float | None:
    """The preference in [1, 2] that a reply states, the switch undone; None if unparsable."""
    if config.verdict == "logprobs":
        shown = weighted(reply.top_logprobs, config.labels, config.min_label_mass)
    else:
        shown = stated(reply.text)
    return 3 - shown if shown is not None and is_switched(instruction) else shown


def stated(text: str) -> float | None:
    """The preference in the one pair of verdict tags at the end of a reply, or None.

    A second tag, in whatever spelling, makes the verdict ambiguous.
    """
    match = _VERDICT.search(text)
    if match is None or len(_ANY_TAG.findall(text)) != 2:
        return None
    return _PREFERENCES[match[1]]


def weighted(
    top_logprobs: Sequence[tuple[str, float]], labels: tuple[str, str], min_mass: float
) -> float | None:
    """2 − P(first label) of the two labels' probabilities, or None where they are not listed.

    `top_logprobs` are (token, log-probability) at the reply's first place; the same label with
    white space around it counts with it. None too where both hold less than `min_mass`.
    """
    first, second = (
        math.fsum(math.exp(min(lp, 0.0)) for token, lp in top_logprobs if token.strip() == label)
        for label in labels
    )
    mass = first + second
    return 2 - first / mass if mass > 0 and mass >= min_mass else None
