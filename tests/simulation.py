"""Simulated units with known truth, for tests of coverage and family-wise error. Run as a module, the large study.

python -m tests.simulation areas 1000     # coverage of AUROC intervals and paired differences, per setting
python -m tests.simulation ranks 200      # share of boards with a false placement, at 12, 100 and 1,000 SAEs
"""

import itertools
import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import norm

from saebench.stats import Ratio, paired_difference, ranks, ratio_interval

AREA = Ratio("decision", "label", within=(0, 1), kind="area")
RATIO = Ratio("num", "den")
SIZES = ("equal", "lognormal", "one large")


def labelled(
    rng: np.random.Generator, groups: int, sizes: str, mixed: bool, area: float, correlation: float
) -> pd.DataFrame:
    """Documents in groups, with a decision that has the given area, and a second one that has the same.

    Args:
        sizes: of the groups: `equal` (12 documents), `lognormal` (around 12, sd 1) or `one large` (half of all documents).
        mixed: whether a group holds both labels; otherwise half of the groups hold each.
        correlation: intra-group correlation of the decisions.
    """
    if sizes == "equal":
        count = np.full(groups, 12)
    elif sizes == "lognormal":
        count = np.maximum(1, np.exp(rng.normal(np.log(12), 1, groups)).round()).astype(int)
    else:
        count = np.full(groups, 6)
        count[rng.integers(groups)] = 3 * groups
    group = np.repeat(np.arange(groups), count)
    n = len(group)
    label = rng.random(n) < 0.4 if mixed else (rng.permutation(groups) % 2 == 0)[group]
    common = norm.ppf(area) * np.sqrt(2) * label + np.sqrt(correlation) * rng.normal(size=groups)[group]
    own = np.sqrt(1 - correlation) * rng.normal(size=(3, n))
    columns = {"decision": common + own[0], "other": common + 0.8 * own[0] + 0.6 * own[1]}
    return pd.DataFrame({"unit_id": np.arange(n), "cluster_id": group, "label": label.astype(int), **columns})


def area_coverage(rng: np.random.Generator, trials: int, **setting: object) -> tuple[float, float]:
    """The share of intervals that cover the area, and of paired differences that cover 0."""
    hits = np.zeros(2)
    for _ in range(trials):
        units = labelled(rng, **setting)  # type: ignore[arg-type]
        while units["label"].nunique() < 2:
            units = labelled(rng, **setting)  # type: ignore[arg-type]
        found = ratio_interval(units, AREA)
        # Without an interval (all right, one group of a label) nothing is claimed.
        hits[0] += found.low is None or found.high is None or found.low <= float(setting["area"]) <= found.high  # type: ignore[arg-type]
        gap = paired_difference(units, units.assign(decision=units["other"]), AREA)
        hits[1] += gap.low is None or gap.high is None or gap.low <= 0 <= gap.high
    return float(hits[0] / trials), float(hits[1] / trials)


def settings() -> Iterator[dict[str, object]]:
    """The settings that the large study covers."""
    for area, correlation, mixed, sizes in itertools.product((0.6, 0.85, 0.95), (0.0, 0.3), (False, True), SIZES):
        yield {"area": area, "correlation": correlation, "mixed": mixed, "sizes": sizes}


def board(rng: np.random.Generator, shifts: np.ndarray, clusters: int) -> list[pd.DataFrame]:
    """SAEs on the same documents, each better than the first by its shift, in standard deviations of its own noise."""
    size = np.maximum(1, rng.lognormal(1.5, 0.6, clusters).round())
    common = rng.lognormal(0, 0.5, clusters)
    own = shifts[:, None] + rng.standard_t(6, size=(len(shifts), clusters))
    base = {"unit_id": np.arange(clusters), "cluster_id": np.arange(clusters), "den": size}
    return [pd.DataFrame({**base, "num": size * (common + row)}) for row in own]


def false_placement(shifts: np.ndarray, found: list[int | None]) -> bool:
    """Whether an SAE is placed below one that is not better: its rank is worse than one plus the number of better ones."""
    truth = 1 + (shifts[None, :] > shifts[:, None]).sum(1)
    return any(rank is not None and rank > true for rank, true in zip(found, truth, strict=True))


def _areas(trials: int) -> None:
    counts = (6, 10, 14, 26, 50)
    print("interval | paired difference, at", counts, "groups")
    for i, setting in enumerate(settings()):
        rng = np.random.default_rng([0, i])
        found = [area_coverage(rng, trials, groups=g, **setting) for g in counts]
        shown = (" ".join(f"{x[j]:.3f}" for x in found) for j in (0, 1))
        print(" | ".join(shown), setting, flush=True)


def _ranks(trials: int) -> None:
    for saes, clusters in itertools.product((12, 100, 1000), (8, 26)):
        boards = trials if saes < 1000 else max(1, trials // 10)
        groups = {
            "all equal": np.zeros(saes),
            "two groups": np.repeat([0.0, 50.0], [saes - saes // 2, saes // 2]),
            "pairs": 50.0 * (np.arange(saes) // 2),
            "doubling": -50.0 * np.floor(np.log2(1 + np.arange(saes) / 2)),
            "four and the rest": np.repeat([0.0, 50.0], [saes - 4, 4]),
        }
        for name, shifts in groups.items():
            wrong = 0
            for trial in range(boards):
                rng = np.random.default_rng([1, trial, saes, clusters])
                wrong += false_placement(shifts, ranks(board(rng, shifts, clusters), RATIO, "higher"))
            print(
                f"{saes} SAEs, {clusters} documents, {name}: false placements on {wrong / boards:.3f} of boards",
                flush=True,
            )


if __name__ == "__main__":
    {"areas": _areas, "ranks": _ranks}[sys.argv[1]](int(sys.argv[2]))
