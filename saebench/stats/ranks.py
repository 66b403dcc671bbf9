"""Many SAEs side by side: ranks that irrelevant SAEs do not move, and the verdict on one difference.

**Ranks.** SAEs are placed from the best down. The SAE in place j is compared with those above it, and each p-value is
multiplied by the number of scores that the table shows and by

    1.3 · j(j − 1)/2 · (1 + ln(j/2))^1.5

j(j − 1)/2 is Bonferroni over the board that ends at j; the rest spends the error over all boards that an SAE could end, so that
the whole board keeps 5 %, also where SAEs form groups of equals (the worst case, groups that double in size, sums to 1.28).
An SAE added further down therefore moves no rank above it, whereas Holm over all pairs loses power with every SAE added. SAEs
that agree on every cluster count once. By simulation
(tests/simulation.py) false placements occur on less than 5 % of boards of 12, 100 and 1,000 SAEs.

**Verdicts.** "Better" needs a size as well as a p-value: a difference of at least the score's smallest difference of interest.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from saebench.stats.estimate import NO_VARIANCE, RESOLUTION, Estimate, estimate
from saebench.stats.intervals import Difference, independent_p_value, paired_p_values
from saebench.stats.units import Declared, shared

Direction = Literal["higher", "lower"]
Verdict = Literal["better", "worse", "differs", "negligible", "same", "unknown"]

ALPHA = 0.05


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (Holm 1979): comparing them with α keeps the chance of any false positive ≤ α.

    The family is all that a table shows: every score of every pair. NaN (no test was made) stays NaN and does not count.
    """
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


def verdict(
    difference: Difference | None,
    direction: Direction | None,
    smallest: float | None = None,
    p_value: float | None = None,
    alpha: float = ALPHA,
) -> Verdict:
    """The verdict on A − B.

    Args:
        difference: A − B; None where it cannot be made.
        direction: which side is better.
        smallest: the score's smallest difference of interest; None where none is known, so that significance alone decides.
        p_value: the adjusted p-value (see `holm`); None takes the difference's own, which is right for a single comparison.
        alpha: the family-wise error.

    Returns:
        better or worse (A against B); differs (no side is better); negligible (significant, but smaller than `smallest`); same
        (not significant); unknown (no test could be made).
    """
    if difference is not None and direction is None and (difference.no_interval or "").startswith(NO_VARIANCE):
        return "differs" if difference.value else "same"  # an L0 fixed by construction
    if difference is None or difference.p_value is None:
        return "unknown"
    if (difference.p_value if p_value is None else p_value) > alpha:
        return "same"
    if smallest is not None and abs(difference.value) < smallest:
        return "negligible"
    if direction is None:
        return "differs"
    return "better" if (difference.value > 0) == (direction == "higher") else "worse"


def ranks(
    units: Sequence[pd.DataFrame],
    score: Declared,
    direction: Direction | None,
    alpha: float = ALPHA,
    paired: bool = True,
    *,
    smallest: float | None = None,
    scores: int = 1,
) -> list[int | None]:
    """The ranks of `standing`."""
    return standing(units, score, direction, alpha, paired, smallest=smallest, scores=scores)[0]


def standing(
    units: Sequence[pd.DataFrame],
    score: Declared,
    direction: Direction | None,
    alpha: float = ALPHA,
    paired: bool = True,
    *,
    smallest: float | None = None,
    scores: int = 1,
) -> tuple[list[int | None], np.ndarray]:
    """Each SAE's rank, and which SAE is better than which by size and significance; see the module's text.

    A rank is one plus the number of SAEs that are better, copies counted once. Entry (i, j) of the boolean matrix, [n, n], is
    true where SAE i is better than SAE j. Where `direction` is None (no side is better) or no interval can be made, every rank is
    None and every entry is false.

    Args:
        paired: whether SAEs share their units; otherwise differences are `independent_difference`.
        smallest: the smallest difference of interest, in the score's unit; None where none is known.
        scores: the number of scores whose ranks the table shows.

    Raises:
        SaebenchError: as `paired_difference`.
    """
    none = np.zeros((len(units), len(units)), dtype=bool)
    if direction is None or not units:
        return [None] * len(units), none
    frames = [shared(units)] if paired else [[frame] for frame in units]
    found = [estimate(together, score) for together in frames]
    if any(est.no_interval() for est in found):
        return [None] * len(units), none
    value = np.concatenate([est.value for est in found])
    gain = value * score.scale * (1 if direction == "higher" else -1)
    order = np.argsort(-gain, kind="stable")
    kept, same_as = _distinct(found[0], order) if paired else (order, np.arange(len(units)))
    size = len(kept)
    p = np.full((size, size), np.nan)  # of the SAE in column j against those in rows i < j, which are above it
    if paired:
        est = _reordered(found[0], kept)
        for i in range(size - 1):
            p[i, i + 1 :] = paired_p_values(est, i)
    else:
        for j in range(1, size):
            p[:j, j] = [independent_p_value(found[kept[i]], found[kept[j]]) for i in range(j)]
    place = np.maximum(np.arange(1, size + 1), 2)
    family = 0.65 * place * (place - 1) * (1 + np.log(place / 2)) ** 1.5 * scores
    with np.errstate(invalid="ignore"):
        better = np.triu(p * family <= alpha, 1)
    if smallest is not None:
        better &= (gain[kept][:, None] - gain[kept][None, :]) >= smallest
    rank = np.empty(len(units), dtype=np.int64)
    rank[kept] = 1 + better.sum(0)
    position = np.empty(len(units), dtype=np.int64)
    position[kept] = np.arange(size)
    at = position[same_as]
    return [int(r) for r in rank[same_as]], better[np.ix_(at, at)]


def _distinct(est: Estimate, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The SAEs of `order` without copies, and for each SAE the one it is a copy of (itself, if of none).

    A copy agrees on every cluster with an SAE above it, to the rounding that two runs of one fingerprint may differ by.
    """
    kept: list[int] = []
    same_as = np.arange(len(order))
    for i in order:
        for last in reversed(kept):
            size = max(abs(est.value[i]), abs(est.value[last]))
            if abs(est.value[i] - est.value[last]) > RESOLUTION * size:
                break  # in order of value: those further up differ more
            rounding = max(est.noise[i], est.noise[last], RESOLUTION * size / np.sqrt(est.clusters))
            if np.sqrt(((est.psi[i] - est.psi[last]) ** 2).sum()) <= rounding:
                same_as[i] = last
                break
        if same_as[i] == i:
            kept.append(int(i))
    return np.array(kept), same_as


def _reordered(est: Estimate, order: np.ndarray) -> Estimate:
    return Estimate(
        est.value[order],
        est.psi[order],
        est.noise[order],
        est.clusters,
        est.largest,
        None if est.own is None else est.own[order],
        None if est.weight is None else est.weight[order],
    )
