"""The estimator: a score of S SAEs over G clusters, each cluster's part in its error, and degrees of freedom.

With A_g, B_g the cluster sums of num and den, D = ΣB_g, w_g = B_g/D and R = Σnum/Σden:

    ψ_g = (A_g − R·B_g) / (D·√(1 − w_g)),   se² = Σψ_g²,   (R̂ − R)/se ~ t with df degrees of freedom

where √(1 − w_g) undoes the pull of a cluster on R, and df matches the first two moments of se² under a working model
in which a document's units move together (var ∝ B_g²). Few documents or one large one mean few degrees of freedom.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from saebench.errors import SaebenchError
from saebench.stats.areas import Area, area
from saebench.stats.units import Declared, clusters_of, column, columns_of

# metrics.md promises every score to 1e-5 relative (rounding inside the model); smaller differences are rounding.
RESOLUTION = 1e-5
# With a larger share of the weight in one document, the others carry no information (and `freedom` would cancel).
LARGEST = 0.99
NO_VARIANCE = "no variance"
# Clusters whose ratios agree to a few units in the last place of float32 do not vary.
_ROUNDING = 2.0**-21


@dataclass(frozen=True)
class Estimate:
    """A score of S SAEs and the ingredients of its uncertainty.

    Attributes:
        value: [S] Σnum/Σden, or the area; without offset and scale.
        psi: [S, G] each cluster's part in the error of `value`, its own pull undone.
        noise: [S] a standard error up to here is rounding: the clusters do not vary.
        clusters: the number of clusters that hold anything.
        largest: the largest weight of one cluster.
        own: [S] degrees of freedom of areas; None for ratios, whose weights give them.
        weight: [S, G] B_g/D of ratios.
    """

    value: np.ndarray
    psi: np.ndarray
    noise: np.ndarray
    clusters: int
    largest: float
    own: np.ndarray | None = None
    weight: np.ndarray | None = None

    @property
    def error(self) -> np.ndarray:
        """[S] standard errors."""
        found: np.ndarray = np.sqrt((self.psi**2).sum(-1))
        return found

    def no_interval(self) -> str | None:
        """The reason why no interval can be made, whatever the units are."""
        if self.clusters < 2:
            return "all units lie in one document"
        if self.largest > LARGEST:
            return f"one document holds more than {LARGEST:.0%} of the denominator"
        return None

    @property
    def no_variance(self) -> str:
        """The reason why there is no interval where the clusters agree."""
        return f"{NO_VARIANCE} in {self.clusters} clusters"

    def freedom(self, i: int = 0) -> float:
        """Degrees of freedom of the score of SAE i."""
        return float(self.own[i]) if self.own is not None else float(freedom(self._weight[i]))

    def pair_freedom(self, i: int, rest: slice) -> np.ndarray:
        """Degrees of freedom of the paired differences of SAE i and each of `rest`."""
        if self.own is not None:
            found: np.ndarray = np.minimum(self.own[i], self.own[rest])
            return found
        return freedom((self._weight[i] + self._weight[rest]) / 2)

    @property
    def _weight(self) -> np.ndarray:
        if self.weight is None:
            raise ValueError("an estimate has degrees of freedom of its own, or weights")
        return self.weight


def estimate(frames: Sequence[pd.DataFrame], score: Declared) -> Estimate:
    """The score of each frame; the frames hold the same units in the same order (`units.shared`).

    Raises:
        SaebenchError: a column is missing or not finite, or the score is not defined.
    """
    return _areas(frames, score) if score.kind == "area" else _ratios(frames, score)


def _ratios(frames: Sequence[pd.DataFrame], score: Declared) -> Estimate:
    num_name, den_name = columns_of(score)
    codes, count = clusters_of(frames[0])

    def totals(columns: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.bincount(codes, c, count) for c in columns])

    nums = [column(f, num_name) for f in frames]
    num, den, size = (
        totals(nums),
        totals([column(f, den_name) for f in frames]),
        totals([np.abs(c) for c in nums]),
    )
    total = den.sum(1, keepdims=True)
    if (np.abs(total) <= 1e-13 * np.abs(den).sum(1, keepdims=True)).any():
        raise SaebenchError(f"column '{den_name}' sums to 0: the score is not defined")
    ratio = num.sum(1, keepdims=True) / total
    weight = den / total
    psi = (num - ratio * den) / total / np.sqrt(np.maximum(1 - weight, 1e-12))
    used = int(((num != 0) | (den != 0)).any(0).sum())
    noise = _ROUNDING * size.sum(1) / np.abs(total[:, 0]) / np.sqrt(max(used, 1))
    return Estimate(ratio[:, 0], psi, noise, used, float(weight.max()), weight=weight)


def _areas(frames: Sequence[pd.DataFrame], score: Declared) -> Estimate:
    num, den = columns_of(score)
    codes, count = clusters_of(frames[0])
    found: list[Area] = []
    for frame in frames:
        label = column(frame, den)
        names = (
            [num] if num in frame.columns else [n for c in range(len(frame.columns)) if (n := f"{num}_{c}") in frame]
        )
        if not names:
            column(frame, num)  # names the missing column
        found.append(area(np.stack([column(frame, n) for n in names], 1), label, codes, count))
    value = np.array([one.value for one in found])
    noise = np.full(len(found), _ROUNDING / np.sqrt(count))
    psi, own = np.stack([one.psi for one in found]), np.array([one.freedom for one in found])
    return Estimate(value, psi, noise, count, max(one.largest for one in found), own)


def freedom(weight: np.ndarray) -> np.ndarray:
    """Bell and McCaffrey's degrees of freedom of se² = Σψ_g², for weights [..., G] that sum to 1.

    se² = Σ a_g e_g² with a = 1/(1 − w), e = (I − w1ᵀ)y and, as a working model, var y_g ∝ w_g² (a document's units move
    together). df = 2·E²/var = (tr M)²/tr M² with M = diag(a)·cov(e), and cov(e) = diag(v) + a matrix of rank 2, so both
    traces are sums over g.
    """
    w, a, v = weight, 1 / (1 - weight), weight**2
    whole = v.sum(-1, keepdims=True)
    outer = whole * w**2 - 2 * w * v
    ww, vv, wv = ((a * x).sum(-1) for x in (w * w, v * v, w * v))
    t = whole[..., 0]
    square = (a**2 * v * (v + 2 * outer)).sum(-1) + 2 * ww * vv + 2 * wv**2 + (t * ww) ** 2 - 4 * t * ww * wv
    found: np.ndarray = (a * (v + outer)).sum(-1) ** 2 / square
    return found
