"""What `selfplay scale` asks a live run for, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from configs.errors import UserError

if TYPE_CHECKING:
    from cluster.fleet import Fleet


def checked_sizes(
    sizes: Mapping[str, int], fleets: Mapping[str, Fleet], *, colocated: bool
) -> dict[str, int]:
    """The sizes by the fleets' names; a part's fleet goes by the part's own name too.

    Raises UserError for a fleet that is not there or has no other size, and for a size that the
    fleet's autoscaler would undo after the iteration in hand.
    """
    named = {_full_name(name, fleets): size for name, size in sizes.items()}
    if unknown := sorted(named.keys() - fleets.keys()):
        raise UserError(f"there is no fleet {unknown[0]}; there are {', '.join(fleets)}")
    if colocated and "rollout" in named:
        raise UserError("colocate is for one engine beside the learner: rollout has one size")
    for name, size in named.items():
        bounds = fleets[name].config.autoscale
        if bounds is not None and not bounds.min <= size <= bounds.max:
            raise UserError(
                f"fleet {name} chooses its size between {bounds.min} and {bounds.max} (its section"
                f" autoscale), and {size} would be undone: name one within, or submit the run again"
                " with other bounds"
            )
    return named


def _full_name(name: str, fleets: Mapping[str, Fleet]) -> str:
    of_part = f"reward_{name}"
    return of_part if name not in fleets and of_part in fleets else name
