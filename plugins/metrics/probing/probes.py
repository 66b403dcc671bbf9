"""Logistic-regression probes on k chosen features, fitted on training documents and evaluated on test documents.

Two classes have one probe, more classes one probe each against the rest; the class with the largest log-odds is predicted.
Features, C, weights, means and scales are chosen and fitted on the training documents alone.

scikit-learn and scipy.stats are imported where they are used: every command imports the metrics, and most fit nothing.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, issparse
from scipy.special import stdtrit
from threadpoolctl import threadpool_limits

from saebench.labels import Labels

# scikit-learn's C (1/C is the weight of the penalty) on features scaled to unit variance; the least held-out log-loss wins.
GRID = (0.01, 0.1, 1.0, 10.0)
# For all latents at once there is no cross-validation: strong, as there may be more latents than documents.
C_ALL = 0.01
FOLDS = 3
# Larger problems are fitted in float32.
DOUBLE_UP_TO = 128

Features = Any  # [N, F] a numpy array or a scipy CSR matrix; scipy has no types to tell them apart with


@dataclass(frozen=True)
class Probe:
    """The probes on one set of features, one for each problem, and their decisions on the test documents.

    Attributes:
        decision: [n_test, P] log-odds; P = 1 for two classes, else one column a class.
        chosen: for each of the P problems the features it reads, best first; empty for all of them.
        weights: for each problem its weights, on features scaled to unit variance.
        C: for each problem.
    """

    decision: np.ndarray
    chosen: list[np.ndarray]
    weights: list[np.ndarray]
    C: list[float]


class Documents:
    """The documents that probes are fitted and tested on, and the folds of whole groups that choose C."""

    def __init__(self, labels: Labels) -> None:
        # Before anything is fitted: a limit of threads reaches only the libraries that are loaded when it is set.
        import_module("sklearn.linear_model")
        self.labels = labels
        self.train, self.test = np.flatnonzero(~labels.test), np.flatnonzero(labels.test)
        n = len(labels.classes)
        self.targets = [labels.label == 1] if n == 2 else [labels.label == c for c in range(n)]

    @cached_property
    def folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs of training and held-out rows of `train`."""
        return _folds(self.labels.label[self.train], self.labels.group[self.train])

    def rankings(self, features: Features, scale: np.ndarray | None = None) -> list[np.ndarray]:
        """For each problem, features by |difference of class means| over the training documents, the largest first.

        Args:
            features: [N, F]
            scale: [F] factor of each feature, such as the norm of a latent's decoder row.
        """
        rows = features[self.train]
        out = []
        for target in self.targets:
            own = target[self.train]
            gap = (
                np.zeros(rows.shape[1]) if own.all() or not own.any() else np.abs(_mean(rows[own]) - _mean(rows[~own]))
            )
            out.append(np.argsort(-(gap if scale is None else gap * scale), kind="stable"))
        return out

    def probe(self, features: Features, rankings: Sequence[np.ndarray] | None, k: int | None, C: float | None) -> Probe:
        """Fit on the training documents, decide on the test documents.

        Args:
            features: [N, F]
            rankings: see `rankings`; None reads every feature.
            k: number of features, the best first.
            C: fixed, or None for cross-validation.
        """
        decision, chosen, weights, found = [], [], [], []
        for p, target in enumerate(self.targets):
            columns = None if rankings is None else rankings[p][:k]
            rows = features if columns is None else features[:, columns]
            if columns is not None and issparse(rows):
                rows = rows.toarray()
            # One thread: these products are too small to share, and their sums do not depend on the machine then.
            with threadpool_limits(1):
                scores, coef, best = self._fit(rows, target[self.train], C)
            decision.append(scores)
            chosen.append(np.empty(0, np.int64) if columns is None else columns)
            weights.append(coef)
            found.append(best)
        return Probe(np.stack(decision, 1), chosen, weights, found)

    def _fit(self, features: Features, target: np.ndarray, C: float | None) -> tuple[np.ndarray, np.ndarray, float]:
        """Decisions on the test documents, weights, C."""
        if target.all() or not target.any():  # a class without training documents (--limit): never predicted
            return np.full(len(self.test), 1e9 if target.all() else -1e9), np.zeros(features.shape[1]), 0.0
        from sklearn import config_context

        train, test = _scaled(features[self.train], features[self.test])
        with config_context(assume_finite=True, skip_parameter_validation=True):
            best = _cross_validated(train, target, self.folds) if C is None else C
            model = _model(best).fit(train, target)
        return model.decision_function(test).astype(np.float64), model.coef_[0], best

    def predicted(self, decision: np.ndarray) -> np.ndarray:
        """[n_test] the predicted class of each test document."""
        return (decision[:, 0] > 0).astype(np.int64) if decision.shape[1] == 1 else decision.argmax(1)


def auroc(
    decision: np.ndarray, label: np.ndarray, cluster: np.ndarray, level: float = 0.95
) -> tuple[float, float | None]:
    """Area under the ROC curve (the mean over classes, one against the rest) and half the width of its interval.

    The interval is DeLong's (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44): each document's influence on the area is
    its placement among the other class; influences are summed within clusters, and t has clusters − 1 degrees of freedom; one
    cluster has no interval.

    Args:
        decision: [n, P], see Probe.
        label: [n] classes; those without a document, or with all of them, are left out.
        cluster: [n] documents of one cluster vary together.
    """
    from scipy.stats import rankdata

    classes = [1] if decision.shape[1] == 1 else range(decision.shape[1])
    areas, influence = [], np.zeros(len(label))
    for column, c in enumerate(classes):
        own = label == c
        if own.all() or not own.any():
            continue
        rank = rankdata(decision[:, column])
        placed = np.empty(len(label))
        placed[own] = (rank[own] - rankdata(decision[own, column])) / (~own).sum()
        placed[~own] = 1 - (rank[~own] - rankdata(decision[~own, column])) / own.sum()
        area = float(placed[own].mean())
        areas.append(area)
        influence += (placed - area) / np.where(own, own.sum(), (~own).sum())
    area = float(np.mean(areas))
    _, place = np.unique(cluster, return_inverse=True)
    sums = np.bincount(place, influence / len(areas))
    n = len(sums)
    if n < 2:
        return area, None
    return area, float(stdtrit(n - 1, (1 + level) / 2)) * float(np.sqrt(n / (n - 1) * (sums**2).sum()))


def principal_directions(rows: np.ndarray) -> np.ndarray:
    """[d, d] the principal directions of rows [n, d], one a column, the largest variance first."""
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return np.ascontiguousarray(vectors[:, ::-1])


def random_directions(d: int, seed: int = 0) -> np.ndarray:
    """[d, d] a random rotation, one direction a column."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    return q


def _mean(rows: Features) -> np.ndarray:
    return np.asarray(rows.mean(0, dtype=np.float64)).ravel()


def _scaled(train: Features, test: Features) -> tuple[Features, Features]:
    """Both sides scaled by the training side's mean and standard deviation.

    A sparse matrix is not centred: the intercept is not penalised, so centring would change nothing but speed.
    """
    if issparse(train):
        square = _mean(train.multiply(train))
        sd = np.sqrt(np.maximum(square - _mean(train) ** 2, 0))
        factor = np.divide(1, sd, out=np.zeros_like(sd), where=sd > 1e-8 * np.sqrt(square))
        return tuple(csr_matrix(side.multiply(factor[None, :]), dtype=np.float32) for side in (train, test))
    mean, sd = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    factor = np.divide(1, sd, out=np.zeros_like(sd), where=sd > 1e-8 * np.abs(mean))
    dtype = np.float64 if train.shape[1] <= DOUBLE_UP_TO else np.float32
    return tuple(((side - mean) * factor).astype(dtype) for side in (train, test))


def _model(C: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, tol=1e-4, max_iter=300, warm_start=True)


def _cross_validated(features: Features, target: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The C of the grid with the least held-out log-loss; within a fold each fit starts from the previous one."""
    losses = np.zeros(len(GRID))
    for inside, outside in folds:
        if target[inside].all() or not target[inside].any():
            continue
        model = _model(GRID[0])
        sign = np.where(target[outside], 1.0, -1.0)
        for i, C in enumerate(GRID):
            model.C = C
            model.fit(features[inside], target[inside])
            losses[i] += np.logaddexp(0, -sign * model.decision_function(features[outside])).sum()
    return GRID[int(losses.argmin())]


def _folds(label: np.ndarray, group: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold

    n = min(FOLDS, len(set(group.tolist())))
    if n < 2:
        return []
    # The smallest class may have fewer documents than there are folds: scikit-learn warns, the folds are still right.
    splitter = StratifiedGroupKFold(n, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return [(a, b) for a, b in splitter.split(np.zeros((len(label), 1)), label, group)]
