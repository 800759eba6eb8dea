"""The rates as text, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.alpaca.rates import Rates
from evaluation.alpaca.verdicts import counted

HEAD = ("", "n", "win", "tie", "loss", "ties half", "95%", "ties lose", "95%")
NONE = "–"


def table(result: Rates) -> str:
    """The rates of `aggregate` or `evaluate`, per cent, and all that a reader should know."""
    title = " ".join(filter(None, [
        result["model"] or "the model",
        f"against {result['reference']}" if result["reference"] else None,
        f"judged by {result['judge']}" if result["judge"] else None,
    ]))  # fmt: skip
    blocks = {"overall": result, **result["subsets"]}
    lines = [f"{title}, per cent", "", *_aligned([HEAD, *(_row(*b) for b in blocks.items())])]
    lines += ["", "ties half: AlpacaEval's win rate; ties lose: the paper's (v3)"]
    rate, absent = result.get("length_controlled_winrate"), result.get("length_controlled_absent")
    if rate is not None:
        lines.append(
            f"length-controlled win rate: {rate:.1f} ({result['length_controlled_source']})"
        )
    elif absent:
        lines.append(f"no length-controlled win rate: {absent}")
    if "against_base" in result:
        lines.append(_against_base(result["against_base"]))
    if result["n_dropped"]:
        lines.append(f"{result['n_dropped']} rows count in no rate: {counted(result['dropped'])}")
    return "\n".join([*lines, *result["notes"]])


def _row(name: str, block: Rates) -> tuple[str, ...]:
    n = block["n_total"]
    shares = (_one(100 * block[k] / n if n else None) for k in ("n_wins", "n_draws", "n_wins_base"))
    rates = (
        text
        for key in ("win_rate", "win_rate_ties_as_losses")
        for text in (_one(block[key]), _ends(block[f"ci95_{key}"]))
    )
    return (name, str(n), *shares, *rates)


def _against_base(block: Rates) -> str:
    gain, ends = block["win_rate_difference"], block["ci95_win_rate_difference"]
    n = block["n_paired"]
    return f"more than the base, ties half: {_one(gain)} {_ends(ends)}, paired on {n} instructions"


def _one(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _ends(ends: Sequence[float] | None) -> str:
    return NONE if ends is None else f"[{ends[0]:.1f}, {ends[1]:.1f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]
