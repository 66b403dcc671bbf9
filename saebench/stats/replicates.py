"""Differences between recipes whose SAEs differ in their training seed: seeds are the replicates.

The score of a recipe is the mean over its seeds. Its error has two parts: the variance between seeds, and that of the documents
which all SAEs were measured on. The first is estimated from the seeds, the second from the units of all of them together; both
are added (the part of the document noise that differs between seeds is in both, which errs on the safe side), with Welch and
Satterthwaite's degrees of freedom.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from saebench.errors import SaebenchError
from saebench.stats.estimate import estimate
from saebench.stats.intervals import LEVEL, Difference
from saebench.stats.units import Declared, shared

_LEAST_P = 1e-300
# A standard error below this share of the value is rounding.
_ROUNDING = 1e-7
_ONE_SEED = "one training seed"


@dataclass(frozen=True)
class Replicates:
    """One recipe's score over its seeds, at one level of L0.

    Attributes:
        values: [R] the score of each seed.
        psi: [G] each document's part in the error of their mean; None where the documents add none (weights, units of an
            SAE's own, whose noise is in the seeds' variance already).
        freedom: degrees of freedom of the documents' part.
    """

    values: np.ndarray
    psi: np.ndarray | None = None
    freedom: float = np.inf

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def variance(self) -> float:
        """Between seeds; NaN for a single one."""
        return float(self.values.var(ddof=1)) if len(self.values) > 1 else float("nan")


@dataclass(frozen=True)
class Interpolated:
    """A weighted mean of levels.

    Attributes:
        value: of the score.
        parts: (variance, degrees of freedom) of each level's seeds.
        psi, freedom: of the documents, as `Replicates`.
        seeds: how many SAEs it rests on.
    """

    value: float
    parts: tuple[tuple[float, float], ...]
    psi: np.ndarray | None
    freedom: float
    seeds: int

    def interval(self, level: float = LEVEL) -> tuple[float | None, float | None, str | None]:
        """The ends of the interval; without one None, None and the reason."""
        documents = [] if self.psi is None else [(float((self.psi**2).sum()), self.freedom)]
        found = _difference(self.value, self.seeds, [*self.parts, *documents], abs(self.value), level)
        return found.low, found.high, found.no_interval


def replicates(units: Sequence[Sequence[pd.DataFrame]], score: Declared) -> list[Replicates]:
    """The score of each recipe from the units of its seeds; all SAEs share their documents.

    Args:
        units: by recipe and seed.
        score: as declared by the metric.

    Raises:
        SaebenchError: as `paired_difference`.
    """
    found = estimate(shared([frame for seeds in units for frame in seeds]), score)
    if reason := found.no_interval():
        raise SaebenchError(reason)
    out, start = [], 0
    for seeds in units:
        own = slice(start, start + len(seeds))
        values = score.offset + score.scale * found.value[own]
        out.append(Replicates(values, score.scale * found.psi[own].mean(0), found.freedom(start)))
        start += len(seeds)
    return out


def replicates_of_values(values: Sequence[float]) -> Replicates:
    """The score of each seed where documents add no noise of their own."""
    return Replicates(np.asarray(values, dtype=np.float64))


def interpolate(levels: Sequence[Replicates], weights: Sequence[float]) -> Interpolated:
    """The weighted mean of levels from one call of `replicates`; weights sum to 1."""
    parts = tuple(
        (w**2 * x.variance / len(x.values), float(len(x.values) - 1)) for x, w in zip(levels, weights, strict=True)
    )
    known = [w * x.psi for x, w in zip(levels, weights, strict=True) if x.psi is not None]
    return Interpolated(
        sum(w * x.mean for x, w in zip(levels, weights, strict=True)), parts,
        np.sum(known, axis=0) if len(known) == len(levels) else None, min(x.freedom for x in levels),
        sum(len(x.values) for x in levels),
    )  # fmt: skip


def pooled_variance(groups: Sequence[Replicates]) -> tuple[float, int]:
    """The variance between seeds over several recipes, and its degrees of freedom (0 where no recipe has two seeds)."""
    degrees = [len(g.values) - 1 for g in groups]
    total = sum(d * g.variance for d, g in zip(degrees, groups, strict=True) if d)
    return (total / sum(degrees) if sum(degrees) else float("nan")), sum(degrees)


def replicated_difference(a: Replicates, b: Replicates, pooled: tuple[float, int], level: float = LEVEL) -> Difference:
    """Mean of A minus mean of B with one variance between seeds for all recipes (`pooled_variance`).

    Args:
        a, b: from one call of `replicates`, so that their documents pair.
        pooled: the common variance and its degrees of freedom.
        level: the interval's coverage.
    """
    parts = [(pooled[0] * (1 / len(a.values) + 1 / len(b.values)), float(pooled[1]))]
    size = max(abs(a.mean), abs(b.mean))
    both = len(a.values) + len(b.values)
    return _difference(a.mean - b.mean, both, [*parts, *_documents(a, b)], size, level)


def interpolated_difference(a: Interpolated, b: Interpolated, level: float = LEVEL) -> Difference:
    """A minus B, each with the variance of its own seeds, and the documents' noise that they share."""
    parts = [*a.parts, *b.parts, *_documents(a, b)]
    return _difference(a.value - b.value, a.seeds + b.seeds, parts, max(abs(a.value), abs(b.value)), level)


def _documents(a: Replicates | Interpolated, b: Replicates | Interpolated) -> list[tuple[float, float]]:
    if a.psi is None or b.psi is None:
        return []
    return [(float(((a.psi - b.psi) ** 2).sum()), min(a.freedom, b.freedom))]


def _difference(value: float, n: int, parts: Sequence[tuple[float, float]], size: float, level: float) -> Difference:
    """A difference whose variance is the sum of the parts (variance, degrees of freedom)."""
    if not all(np.isfinite(variance) and degrees > 0 for variance, degrees in parts):
        return Difference(value, None, None, None, n, n, _ONE_SEED)
    total = sum(variance for variance, _ in parts)
    if total <= (_ROUNDING * size) ** 2:
        return Difference(value, None, None, None, n, n, "no variance between seeds")
    degrees = total**2 / sum(variance**2 / d for variance, d in parts)
    half = float(stdtrit(degrees, (1 + level) / 2)) * total**0.5
    p = max(2 * float(stdtr(degrees, -abs(value) / total**0.5)), _LEAST_P)
    return Difference(value, value - half, value + half, p, n, n)
