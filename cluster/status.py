"""What a live run is doing: one JSON object, and the same as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.fleet import Fleet
    from cluster.record import IterationRecord
    from configs.schema import RunConfig

Status = dict[str, Any]


def status_of(
    config: RunConfig,
    iteration: int,
    awaited: str,
    fleets: Mapping[str, Fleet],
    last: IterationRecord | None,
    *,
    starting: bool,
) -> Status:
    """The status of a run; `last` is the record of its last iteration in this life.

    {run, starting, iteration, iterations, version, awaited, last: {…} or null, fleets: {name:
    {target, serving, waiting, in_flight, restarts, members: […], unplaced: {member: a sentence}}}};
    `waiting` are calls without a member, `in_flight` those in members' hands.
    """
    return {
        "run": str(config.run_dir.absolute()),
        "starting": starting,
        "iteration": iteration,
        "iterations": config.iterations,
        "version": iteration,
        "awaited": awaited,
        "last": None if last is None else _last(last),
        "fleets": {name: _fleet(fleet) for name, fleet in fleets.items()},
    }


def _last(record: IterationRecord) -> dict[str, Any]:
    row = record.as_dict()
    keys = ("v", "staleness_mean", "staleness_max", "tokens_per_second", "admitted_share", "alarms")
    return {key: row[key] for key in keys} | {"seconds": row["seconds"]["iteration"]}


def _fleet(fleet: Fleet) -> dict[str, Any]:
    return {
        "target": fleet.target,
        "serving": len(fleet.serving()),
        "waiting": fleet.waiting,
        "in_flight": fleet.in_flight,
        "restarts": fleet.restarts,
        "members": fleet.describe(),
        "unplaced": dict(fleet.unplaced),
    }


def status_text(status: Mapping[str, Any]) -> str:
    """The status as a person reads it."""
    last = status["last"]
    lines = [
        f"{status['run']}: {status['iteration']} of {status['iterations']} iterations, policy"
        f" version {status['version']}",
        f"  waits for   {status['awaited']}",
    ]
    if last is not None:
        lines.append(
            f"  last        {last['seconds']:.1f} s, {last['tokens_per_second']:,.0f} tokens/s,"
            f" staleness {last['staleness_mean']:.2g} on average, {last['staleness_max']} at most"
        )
    lines.append("")
    lines += _table(
        ["fleet", "actors", "serving", "version", "calls", "waiting", "restarts"],
        [_row(name, fleet) for name, fleet in status["fleets"].items()],
    )
    fleets = status["fleets"].values()
    members = [member for fleet in fleets for member in fleet["members"]]
    lines.append("")
    lines += _table(
        ["member", "state", "version", "calls", "restarts", "process"],
        [_member_row(member) for member in members],
    )
    for fleet in fleets:
        lines += [f"  {sentence}" for sentence in fleet["unplaced"].values()]
    return "\n".join(lines)


def _row(name: str, fleet: Mapping[str, Any]) -> list[str]:
    versions = {m["version"] for m in fleet["members"] if m["state"] == "serving"} - {None}
    known = sorted(versions)
    shown = "–" if not known else str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"
    figures = ("serving", "in_flight", "waiting", "restarts")
    serving, calls, waiting, restarts = (str(fleet[key]) for key in figures)
    return [name, str(fleet["target"]), serving, shown, calls, waiting, restarts]


def _member_row(member: Mapping[str, Any]) -> list[str]:
    keys = ("name", "state", "version", "in_flight", "restarts", "pid")
    known = (member.get(key) for key in keys)
    return ["–" if one is None else str(one) for one in known]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  " + row[0].ljust(widths[0]) + "".join(
            f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)
        )
        for row in [head, *rows]
    ]  # fmt: skip
