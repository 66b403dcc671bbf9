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


@dataclass(frozen=True)
class Replicates:
    """One recipe's score over its seeds.

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


def pooled_variance(groups: Sequence[Replicates]) -> tuple[float, int]:
    """The variance between seeds over several recipes, and its degrees of freedom (0 where no recipe has two seeds)."""
    degrees = [len(g.values) - 1 for g in groups]
    total = sum(d * g.variance for d, g in zip(degrees, groups, strict=True) if d)
    return (total / sum(degrees) if sum(degrees) else float("nan")), sum(degrees)


def replicated_difference(
    a: Replicates, b: Replicates, pooled: tuple[float, int] | None = None, level: float = LEVEL
) -> Difference:
    """Mean of A minus mean of B, with the noise of training seeds and of documents.

    Args:
        a, b: from one call of `replicates`, so that their documents pair.
        pooled: a common variance between seeds and its degrees of freedom (`pooled_variance`); None: each its own, which needs
            two seeds of both.
        level: the interval's coverage.
    """
    value, n = a.mean - b.mean, len(a.values) + len(b.values)
    if pooled is None:
        parts = [(x.variance / len(x.values), float(len(x.values) - 1)) for x in (a, b)]
    else:
        parts = [(pooled[0] * (1 / len(a.values) + 1 / len(b.values)), float(pooled[1]))]
    if not all(np.isfinite(variance) and degrees > 0 for variance, degrees in parts):
        return Difference(value, None, None, None, n, n, "one training seed only")
    if a.psi is not None and b.psi is not None:
        parts.append((float(((a.psi - b.psi) ** 2).sum()), min(a.freedom, b.freedom)))
    total = sum(variance for variance, _ in parts)
    if total <= (1e-7 * max(abs(a.mean), abs(b.mean))) ** 2:
        return Difference(value, None, None, None, n, n, "no variance between seeds")
    degrees = total**2 / sum(variance**2 / d for variance, d in parts)
    error = total**0.5
    half = float(stdtrit(degrees, (1 + level) / 2)) * error
    p = max(2 * float(stdtr(degrees, -abs(value) / error)), _LEAST_P)
    return Difference(value, value - half, value + half, p, n, n)
