"""Intervals of single scores and of differences between two SAEs."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import betaincinv, expit, logit, stdtr, stdtrit

from saebench.errors import SaebenchError
from saebench.stats.estimate import RESOLUTION, Estimate, estimate
from saebench.stats.units import Declared, Ratio, column, shared

LEVEL = 0.95
# The tail of Student's t underflows to 0; a p-value of 0 claims certainty.
_LEAST_P = 1e-300


@dataclass(frozen=True)
class Interval:
    """A score with its interval.

    Attributes:
        value: offset + scale · Σnum/Σden, or the area.
        low, high: the ends of the interval; None where there is none.
        n: Σcount, or the number of units.
        clusters: the number of clusters (documents) that hold anything.
        no_interval: the reason why there is no interval.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    no_interval: str | None = None


@dataclass(frozen=True)
class Difference:
    """The score of A minus that of B on the units both share.

    Attributes:
        value: A − B, in the score's own unit.
        low, high: the ends of its interval; None where there is none.
        p_value: two-sided, of no difference; never 0; 1 for a difference below `RESOLUTION`; None where no test can be made.
        n: the number of shared units.
        clusters: the number of clusters that hold anything.
        no_interval: the reason why there is no interval.
    """

    value: float
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    clusters: int
    no_interval: str | None = None


def ratio_interval(units: pd.DataFrame, score: Declared, level: float = LEVEL) -> Interval:
    """The value of a declared score with its cluster-robust interval.

    A share (`within` 0 and 1) of units that are 0 or 1, one per cluster, has at least its exact interval (Clopper & Pearson 1934,
    Biometrika 26), so that one failure in 20 never has a better lower end than none. Where no cluster differs from the others,
    other scores have no interval. An area's interval is symmetric on the logit
    scale.

    Args:
        units: one row per unit: `cluster_id` and the columns that `score` names.
        score: columns, offset and scale.
        level: the interval's coverage.

    Raises:
        SaebenchError: a column is missing or not finite, the score is not defined, or the value is beyond `within`.
    """
    est = estimate([units], score)
    n = round(float(column(units, score.count).sum())) if score.count else len(units)
    value = score.offset + score.scale * float(est.value[0])
    least, most = score.within or (-np.inf, np.inf)
    slack = 1e-9 * max(1.0, abs(value))
    if not least - slack <= value <= most + slack:
        raise SaebenchError(f"{value:g} is not within {least:g} and {most:g}, the score's declared limits")
    if reason := est.no_interval():
        return Interval(value, None, None, n, est.clusters, reason)
    ends = _ends(est, level)
    if (shares := _independent_shares(units, score)) is not None:
        exact = _clopper_pearson(round(float(shares.sum())), len(shares), level)
        ends = exact if ends is None else (min(*ends, *exact), max(*ends, *exact))
    if ends is None:
        return Interval(value, None, None, n, est.clusters, est.no_variance)
    low, high = sorted(score.offset + score.scale * end for end in ends)
    return Interval(value, max(low, least), min(high, most), n, est.clusters)


def auroc_interval(decision: np.ndarray, label: np.ndarray, cluster: np.ndarray, level: float = LEVEL) -> Interval:
    """The area under the ROC curve with its interval, for a score that is not kept in the units.

    Args:
        decision: [n, 1] for two classes (label 1 is positive), else [n, C].
        label: [n] class numbers.
        cluster: [n] units of one cluster vary together.

    Raises:
        SaebenchError: as `ratio_interval`.
    """
    columns = {f"decision_{c}": decision[:, c] for c in range(decision.shape[1])}
    frame = pd.DataFrame({"cluster_id": cluster, "label": label, **columns})
    return ratio_interval(frame, Ratio("decision", "label", kind="area"), level)


def paired_difference(
    units_a: pd.DataFrame, units_b: pd.DataFrame, score: Declared, level: float = LEVEL
) -> Difference:
    """Score of A minus score of B on the units that both share, so that their common variation cancels.

    Where the differences do not vary, the test is exact (a sign test) for shares of units that are 0 or 1, one per cluster;
    otherwise there is neither interval nor p-value.

    Args:
        units_a, units_b: one row per unit: `unit_id`, `cluster_id` and the columns that `score` names.
        score: columns, offset and scale; the same for both.
        level: the interval's coverage.

    Raises:
        SaebenchError: no unit is shared, a unit lies in different clusters or appears twice, a column is missing or
            not finite, or the score is not defined.
    """
    frames = shared([units_a, units_b])
    est = estimate(frames, score)
    value = score.scale * float(est.value[0] - est.value[1])
    n = len(frames[0])
    if reason := est.no_interval():
        return Difference(value, None, None, None, n, est.clusters, reason)
    p = float(paired_p_values(est, 0)[0])
    error = float(np.sqrt(((est.psi[0] - est.psi[1]) ** 2).sum()))
    if error <= est.noise.max():
        return _without_variance(frames, score, value, None if np.isnan(p) else p, est, level)
    half = _half(error, float(est.pair_freedom(0, slice(1, None))[0]), score.scale, level)
    return Difference(value, value - half, value + half, p, n, est.clusters)


def independent_difference(
    units_a: pd.DataFrame, units_b: pd.DataFrame, score: Declared, level: float = LEVEL
) -> Difference:
    """Score of A minus score of B where no unit of one is related to a unit of the other (each SAE's own latents).

    The variances add, and the degrees of freedom are Welch and Satterthwaite's (Welch 1947, Biometrika 34(1/2)).

    Args:
        units_a, units_b: one row per unit: `cluster_id` and the columns that `score` names.
        score: columns, offset and scale; the same for both.
        level: the interval's coverage.

    Raises:
        SaebenchError: a column is missing or not finite, or the score is not defined.
    """
    a, b = (estimate([units], score) for units in (units_a, units_b))
    value = score.scale * float(a.value[0] - b.value[0])
    n, clusters = len(units_a) + len(units_b), a.clusters + b.clusters
    if reason := a.no_interval() or b.no_interval():
        return Difference(value, None, None, None, n, clusters, reason)
    p = independent_p_value(a, b)
    spread = _added(a, b)
    if spread is None:
        one = a if float(a.error[0]) <= a.noise[0] else b
        return Difference(value, None, None, None if np.isnan(p) else p, n, clusters, one.no_variance)
    half = _half(*spread, score.scale, level)
    return Difference(value, value - half, value + half, p, n, clusters)


def paired_p_values(est: Estimate, i: int) -> np.ndarray:
    """p-values of SAE i against each of i + 1 …; NaN where differences do not vary, 1 where they are below `RESOLUTION`."""
    rest = slice(i + 1, None)
    error = np.sqrt(((est.psi[i] - est.psi[rest]) ** 2).sum(-1))
    difference = np.abs(est.value[i] - est.value[rest])
    largest = np.maximum(np.abs(est.value[i]), np.abs(est.value[rest]))
    flat = error <= np.maximum(est.noise[i], est.noise[rest])
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.maximum(2 * stdtr(est.pair_freedom(i, rest), -difference / error), _LEAST_P)
    found: np.ndarray = np.where(difference <= RESOLUTION * largest, 1.0, np.where(flat, np.nan, p))
    return found


def independent_p_value(a: Estimate, b: Estimate) -> float:
    """The p-value of the difference of two estimates of independent units; as `paired_p_values`."""
    difference = abs(float(a.value[0] - b.value[0]))
    if difference <= RESOLUTION * max(abs(float(a.value[0])), abs(float(b.value[0]))):
        return 1.0
    spread = _added(a, b)
    if spread is None:
        return float("nan")
    error, degrees = spread
    return max(float(2 * stdtr(degrees, -difference / error)), _LEAST_P)


def _half(error: float, degrees: float, scale: float, level: float) -> float:
    return float(stdtrit(degrees, (1 + level) / 2) * error * abs(scale))


def _ends(est: Estimate, level: float) -> tuple[float, float] | None:
    """The interval of `est.value[0]`; None where the clusters do not vary."""
    value, error = float(est.value[0]), float(est.error[0])
    if error <= est.noise[0]:
        return None
    if est.own is None or not 0 < value < 1:
        half = _half(error, est.freedom(), 1.0, level)
        return value - half, value + half
    half = _half(error, est.freedom(), 1 / (value * (1 - value)), level)
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def _independent_shares(units: pd.DataFrame, score: Declared) -> np.ndarray | None:
    """num/den of units that are all 0 or 1, weigh the same and lie in a cluster each; None for other units.

    Only a score whose declared limits are those of a share can be one: an L0 of 1 on every context is no share.
    """
    if score.within is None or not np.allclose(
        sorted(score.within), sorted((score.offset, score.offset + score.scale))
    ):
        return None
    if score.kind != "ratio" or score.num is None or score.den is None or units["cluster_id"].duplicated().any():
        return None
    den = column(units, score.den)
    counted = den != 0  # units without weight are in neither sum
    num, den = column(units, score.num)[counted], den[counted]
    if not len(den) or (np.abs(den - den[0]) > 1e-9 * abs(den[0])).any():
        return None
    shares = num / den
    whole = np.round(shares)
    return whole if np.isin(whole, (0, 1)).all() and np.allclose(shares, whole, rtol=0, atol=1e-9) else None


def _clopper_pearson(successes: int, n: int, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def _without_variance(
    frames: list[pd.DataFrame], score: Declared, value: float, p: float | None, est: Estimate, level: float
) -> Difference:
    """A paired difference whose clusters agree: exact for units of 0 and 1, otherwise without interval."""
    n = len(frames[0])
    a, b = (_independent_shares(frame, score) for frame in frames)
    if a is None or b is None:
        return Difference(value, None, None, p, n, est.clusters, est.no_variance)
    tail = ((1 - level) / 2) ** (1 / n)
    # All pairs alike: the share of other pairs is at most 1 − tail, and each of them moves the difference by 1, or by 2.
    way = float(a[0] - b[0])
    low, high = (tail - 1, 1 - tail) if way == 0 else (2 * tail - 1, 1.0)
    if way != 0:
        p = max(2.0 ** (1 - n), _LEAST_P)
    low, high = sorted(score.scale * (way or 1.0) * end for end in (low, high))
    return Difference(value, low, high, p, n, est.clusters)


def _added(a: Estimate, b: Estimate) -> tuple[float, float] | None:
    """Standard error and degrees of freedom of a difference of independent scores; None where either does not vary."""
    if any(float(est.error[0]) <= est.noise[0] for est in (a, b)):
        return None
    parts = [(float(est.error[0]) ** 2, est.freedom()) for est in (a, b)]
    total = sum(var for var, _ in parts)
    return float(np.sqrt(total)), total**2 / sum(var**2 / degrees for var, degrees in parts)
