"""Compares the methods of an experiment: held-out rates over seeds, win/tie/loss, paired tests.

A rate is the share of a run's held-out problems that greedy answers solve. Rates are fractions.
How each figure is defined is said in docs/replication.md.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import stats

from configs.errors import UserError
from evaluation.intervals import Booleans, paired_difference, wilson
from evaluation.run_files import Row, read_summary

T = TypeVar("T")
Floats = npt.NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]]
Inside = Callable[[T, T], dict[str, Any] | None]
"""(others, mine) of one seed → {difference, ci95, p, …}, None where nothing can be paired."""

LEVEL = 0.95
OVERALL = "overall"
"""Stands beside the names of families."""
RATE = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)
"""Between what a rate lies, and a difference of two."""


def compare(
    runs: Mapping[str, Mapping[int, Sequence[Path]]], bases: Mapping[int, Path]
) -> dict[str, Any]:
    """Methods and tests of an experiment.

    Args:
        runs: By method and seed, the run directories of its stages; none for the base model.
        bases: By seed, a run directory that measured the base model before it began.

    Returns:
        {n, methods: {name: {seeds: [{seed, heldout, families, win, tie, loss, invented}], mean,
        ci95}}, means: {heldout: {name: {family: {mean, ci95, over}}}}, tests: [...]}, n the number
        of held-out problems; see `estimate` and `paired_test`.

    Raises:
        UserError: A run measured no held-out problems, or others than the base.
    """
    right = {
        method: {seed: vectors(dirs, bases[seed]) for seed, dirs in by_seed.items()}
        for method, by_seed in runs.items()
    }
    methods = {
        method: _method(
            [
                {
                    "seed": seed,
                    **row(*right[method][seed]),
                    "invented": _invented(dirs),
                    **_families(dirs, bases[seed]),
                }
                for seed, dirs in sorted(by_seed.items())
            ]
        )
        for method, by_seed in runs.items()
    }
    after = {name: {s: pair[1] for s, pair in seeds.items()} for name, seeds in right.items()}
    lengths = {len(base_n) for seeds in right.values() for base_n, _ in seeds.values()}
    n = max(lengths, default=0)
    counts = _counts(n, bases.values())
    return {
        "n": n,
        "methods": methods,
        "means": {"heldout": {name: _means(one["seeds"], counts) for name, one in methods.items()}},
        "tests": paired_tests(after, within),
    }


def check_bases(firsts: Mapping[int, Sequence[Path]]) -> None:
    """Raise UserError where first stages of one seed solved different problems before training.

    All methods of a seed are compared with what one of these stages measured.
    """
    for seed, dirs in firsts.items():
        for run_dir in dirs[1:]:
            if not np.array_equal(right_of(dirs[0], "before"), right_of(run_dir, "before")):
                raise UserError(
                    f"{dirs[0]} and {run_dir} did not solve the same held-out problems before"
                    f" training, so seed {seed} has no one base to compare with: give both one"
                    " model, heldout and rollout, remove the folder of the wrong one and play it"
                    " anew"
                )


def vectors(dirs: Sequence[Path], base: Path) -> tuple[Booleans, Booleans]:
    """Which problems the base and the last stage's model solve, two [n]."""
    base_n = right_of(base, "before")
    after_n = right_of(dirs[-1], "after") if dirs else base_n
    if base_n.shape != after_n.shape:
        raise UserError(
            f"{dirs[-1]} has {len(after_n)} held-out problems and {base} has {len(base_n)}: give"
            " all stages one heldout.n"
        )
    return base_n, after_n


def right_of(run_dir: Path, when: str) -> Booleans:
    """Which held-out problems were solved `before` or `after` a run [n]."""
    path = run_dir / f"heldout-{when}.json"
    if not path.is_file():
        raise UserError(
            f"{run_dir} measured no held-out problems {when} training (heldout is null there)"
        )
    return np.array(json.loads(path.read_text("utf-8"))["right"], bool)


def row(base_n: Booleans, after_n: Booleans) -> dict[str, Any]:
    """The rate, and the shares of problems won, tied and lost against the base."""
    n = len(base_n)
    win, loss = int((after_n & ~base_n).sum()), int((base_n & ~after_n).sum())
    return {
        "heldout": float(after_n.mean()),
        "win": win / n,
        "tie": (n - win - loss) / n,
        "loss": loss / n,
    }


def _invented(dirs: Sequence[Path]) -> int:
    """How many held-out problems the Challenger wrote by itself, over the stages."""
    return sum(_heldout(run_dir).get("invented_by_challenger", 0) for run_dir in dirs)


def mean_interval(
    values: Sequence[float], bounds: tuple[float, float] = RATE
) -> tuple[float | None, list[float] | None]:
    """The mean over seeds with its 95% interval by Student's t; None where there is none.

    It is cut off at the bounds of the values, beyond which no mean lies.
    """
    if not values:
        return None, None
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return mean, [max(bounds[0], mean - half), min(bounds[1], mean + half)]


def estimate(values: Sequence[float], alone: Sequence[float] | None, unit: str) -> dict[str, Any]:
    """{mean, ci95, over}: the mean over seeds, and its interval over "seeds".

    One seed has none over seeds: then it is `alone`, that seed's own, over what `unit` names.
    """
    mean, ci95 = mean_interval(values)
    if len(values) == 1:
        return {"mean": mean, "ci95": None if alone is None else list(alone), "over": unit}
    return {"mean": mean, "ci95": ci95, "over": "seeds"}


def paired_tests(after: Mapping[str, Mapping[int, T]], inside: Inside[T]) -> list[dict[str, Any]]:
    """`paired_test` of each pair of methods, the p-values adjusted over the pairs.

    Those within a seed are adjusted over the pairs of that seed. `after` is by method and seed.
    """
    pairs = list(itertools.combinations(reversed(list(after)), 2))[::-1]
    made = [paired_test(a, b, after[a], after[b], inside) for a, b in pairs]
    tests = [one for one in made if one is not None]
    by_seed = {
        seed: adjusted([row for one in tests for row in one["seeds"] if row["seed"] == seed])
        for seed in {row["seed"] for one in tests for row in one["seeds"]}
    }
    # Rows of a seed stand in the order of the tests, so each test takes the next one.
    rows = {seed: iter(found) for seed, found in by_seed.items()}
    return adjusted(
        [{**one, "seeds": [next(rows[row["seed"]]) for row in one["seeds"]]} for one in tests]
    )


def paired_test(
    method: str,
    against: str,
    mine: Mapping[int, T],
    others: Mapping[int, T],
    inside: Inside[T],
) -> dict[str, Any] | None:
    """Two methods on the seeds they share: a paired t-test over seeds, `inside` within each.

    Args:
        method: The name of what `mine` is of, by seed.
        against: The name of what `others` is of.
        mine: What the method came to, in the form that `inside` takes.
        others: The same of the other.
        inside: Tests them within a seed.

    Returns:
        {method, against, difference, ci95, t, p, seeds: [{seed, difference, ci95, p, …}]};
        `difference` is of the rates, t and p are None where the seeds do not differ or where
        there is one only. None without a shared seed.
    """
    shared = sorted(mine.keys() & others.keys())
    pairs = {seed: inside(others[seed], mine[seed]) for seed in shared}
    seeds = [{"seed": seed, **found} for seed, found in pairs.items() if found is not None]
    if not seeds:
        return None
    differences = [one["difference"] for one in seeds]
    mean, ci95 = mean_interval(differences, DIFFERENCE)
    t, p = paired_t(differences)
    return {
        "method": method,
        "against": against,
        "difference": mean,
        "ci95": ci95,
        "t": t,
        "p": p,
        "seeds": seeds,
    }


def paired_t(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """t and two-sided p of the differences' mean being 0."""
    if len(differences) < 2 or np.ptp(differences) < 1e-12:
        return None, None
    t, p = np.asarray(stats.ttest_1samp(differences, 0.0), np.float64)
    return float(t), float(p)


def within(others_n: Booleans, mine_n: Booleans) -> dict[str, Any]:
    """The difference on one seed's problems, with McNemar's exact two-sided p."""
    gained, lost = int((mine_n & ~others_n).sum()), int((others_n & ~mine_n).sum())
    changed = gained + lost
    return {
        "difference": (gained - lost) / len(mine_n),
        "ci95": list(paired_difference(others_n, mine_n)),
        "gained": gained,
        "lost": lost,
        "p": float(stats.binomtest(gained, changed).pvalue) if changed else 1.0,
    }


def adjusted(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `p_adjusted`, Benjamini and Hochberg's over all tests that have a p."""
    known = [one for one in tests if one["p"] is not None]
    values = stats.false_discovery_control([one["p"] for one in known]) if known else []
    by_test = {id(one): float(p) for one, p in zip(known, values, strict=True)}
    return [{**one, "p_adjusted": by_test.get(id(one))} for one in tests]


def _means(seeds: Rows, counts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """By family, and overall, `estimate` of the rates; of one seed, Wilson's interval.

    `counts` are the problems of each family.
    """
    rates: dict[str, list[float]] = {OVERALL: [row["heldout"] for row in seeds]}
    for name in dict.fromkeys(name for row in seeds for name in row["families"]):
        rates[name] = [row["families"][name] for row in seeds if name in row["families"]]
    return {
        name: estimate(each, _wilson(each, counts[name]), "problems")
        for name, each in rates.items()
    }


def _wilson(rates: Sequence[float], n: int) -> tuple[float, float] | None:
    return wilson(round(rates[0] * n), n) if rates else None


def _counts(n: int, bases: Iterable[Path]) -> dict[str, int]:
    """The number of held-out problems, and of each family's."""
    found = {OVERALL: n}
    for base in bases:
        found |= {name: one["n"] for name, one in _heldout(base)["families"].items()}
    return found


def _heldout(run_dir: Path) -> Row:
    summary = read_summary(run_dir)
    assert summary is not None, "only runs that ended are compared"
    return summary["heldout"]


def _families(dirs: Sequence[Path], base: Path) -> dict[str, dict[str, float]]:
    when = "after" if dirs else "before"
    families = _heldout(dirs[-1] if dirs else base)["families"]
    return {"families": {name: rates[when] for name, rates in families.items()}}


def _method(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    mean, ci95 = mean_interval([one["heldout"] for one in seeds])
    return {"seeds": seeds, "mean": mean, "ci95": ci95}
