"""Logistic-regression probes on k chosen features, and their decisions on documents that they were not fitted on.

One probe for two classes, one against the rest for each of more; the class with the largest log-odds is the prediction. The
choice of features, their scale, C and the weights come from the training side alone; while C is chosen, the choice of features
and their scale come from the inside of each fold.

The k features of a probe are divided by one common factor, so that a feature that varies more counts more: features scaled to
unit variance each (version 2) gave a latent that fires in one document as much room as one that fires in many.

scikit-learn is imported where it is used: every command imports the metrics, and most fit nothing.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix, issparse
from threadpoolctl import threadpool_limits

from saebench.labels import Labels
from saebench.streams import stream_seed

# scikit-learn's C (1/C is the weight of the penalty) on features of mean variance 1; the fewest held-out errors win. By log-loss
# the penalty comes out stronger, and costs accuracy where documents are few (docs/probing.md).
GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
# The same for the probe on all of x, whose dimensions have variance 1 each.
DENSE_GRID = (0.01, 0.1, 1.0, 10.0)
# For all latents at once there is no cross-validation: strong, as there may be more latents than documents.
C_ALL = 0.01
FOLDS = 3

Features = Any  # [N, F] a numpy array or a scipy sparse matrix; scipy has no types to tell them apart with


@dataclass(frozen=True)
class Probe:
    """One kind of probe: its decisions on the test documents, and its parameters.

    Attributes:
        decision: [n_test, P] log-odds; P = 1 for two classes, else one column a class.
        chosen: for each of the P problems the features it reads, best first; empty for all of them.
        weights: for each problem its weights, on the features as they were given.
        C: for each problem.
    """

    decision: np.ndarray
    chosen: list[np.ndarray]
    weights: list[np.ndarray]
    C: list[float]


class Documents:
    """The documents that probes are fitted and tested on, and the folds that C is chosen with (whole groups)."""

    def __init__(self, labels: Labels, seed: int = 0) -> None:
        # Before anything is fitted: a limit of threads reaches only the libraries that are loaded when it is set.
        import_module("sklearn.linear_model")
        self.labels = labels
        self.train, self.test = np.flatnonzero(~labels.test), np.flatnonzero(labels.test)
        self._own = [1] if len(labels.classes) == 2 else list(range(len(labels.classes)))
        self._seed = seed

    @cached_property
    def _folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The documents inside and outside of each fold."""
        pairs = _folds(self.labels.label[self.train], self.labels.group[self.train], self._seed)
        return [(self.train[inside], self.train[outside]) for inside, outside in pairs]

    def sparse_probes(self, features: Features, ks: Sequence[int]) -> dict[int, Probe]:
        """{k: the probe on the k features of the largest |difference of class means|}, with C by cross-validation.

        Args:
            features: [N, F], in a common unit (latents times the norm of their decoder row).
            ks: at most F each.
        """
        if not ks:
            return {}
        features = csc_matrix(features, dtype=np.float64) if issparse(features) else features.astype(np.float64)
        splits = [*self._folds, (self.train, self.test)]
        rankings = [self._ranking(features, inside, max(ks)) for inside, _ in splits]
        fitted: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray, float]]] = {k: [] for k in ks}
        # One thread: these products are too small to share, and their sums do not depend on the machine then.
        with threadpool_limits(1), _lenient():
            for p, own in enumerate(self._own):
                target = self.labels.label == own
                parts = [_rows(features, r[p], split) for r, split in zip(rankings, splits, strict=True)]
                targets = [(target[inside], target[outside]) for inside, outside in splits]
                for k in ks:
                    scaled = [_by_one_factor(a[:, :k], b[:, :k]) for a, b in parts]
                    C = _fewest_errors([(a, b) for a, b, _ in scaled[:-1]], targets[:-1], GRID, "newton-cholesky")
                    train, test, factor = scaled[-1]
                    decision, weights, C = _fit(train, test, targets[-1][0], C, "newton-cholesky")
                    fitted[k].append((decision, rankings[-1][p][:k], weights * factor, C))
        return {k: _probe(found) for k, found in fitted.items()}

    def full_probe(self, features: Features) -> Probe:
        """The probe on all features in a common unit, with `C_ALL`."""
        features = csr_matrix(features, dtype=np.float64) if issparse(features) else features.astype(np.float64)
        train, test, factor = _by_one_factor(features[self.train], features[self.test])
        found = []
        with threadpool_limits(1), _lenient():
            for own in self._own:
                target = self.labels.label[self.train] == own
                decision, weights, C = _fit(train, test, target, C_ALL, "lbfgs")
                found.append((decision, np.empty(0, np.int64), weights * factor, C))
        return _probe(found)

    def dense_probe(self, x: np.ndarray) -> Probe:
        """The probe on all of x [N, d], with C by cross-validation; the ceiling.

        Each dimension is scaled to unit variance, unlike latents: a few dimensions of a residual stream hold most variance.
        """
        x = x.astype(np.float64)
        splits = [*self._folds, (self.train, self.test)]
        scaled = [_to_unit_variance(x[inside], x[outside]) for inside, outside in splits]
        found = []
        with threadpool_limits(1), _lenient():
            for own in self._own:
                target = self.labels.label == own
                targets = [(target[inside], target[outside]) for inside, outside in splits]
                C = _fewest_errors(scaled[:-1], targets[:-1], DENSE_GRID, "lbfgs")
                decision, weights, C = _fit(*scaled[-1], targets[-1][0], C, "lbfgs")
                found.append((decision, np.empty(0, np.int64), weights, C))
        return _probe(found)

    def _ranking(self, features: Features, rows: np.ndarray, top: int) -> list[np.ndarray]:
        """For each problem, the `top` features by |difference of class means| over these rows, the largest first."""
        label, n = self.labels.label[rows], len(rows)
        of_class = csr_matrix((np.ones(n), (label, np.arange(n))), shape=(len(self.labels.classes), n))
        sums = of_class @ features[rows]
        sums = sums.toarray() if issparse(sums) else sums
        sizes, total = np.bincount(label, minlength=len(sums)), sums.sum(0)
        out = []
        for own in self._own:
            size = int(sizes[own])
            gap = np.zeros(len(total))
            if 0 < size < n:
                gap = np.abs(sums[own] / size - (total - sums[own]) / (n - size))
            out.append(np.argsort(-gap, kind="stable")[:top])
        return out

    def predicted(self, decision: np.ndarray) -> np.ndarray:
        """[n_test] the predicted class of each test document."""
        return (decision[:, 0] > 0).astype(np.int64) if decision.shape[1] == 1 else decision.argmax(1)


def principal_directions(rows: np.ndarray) -> np.ndarray:
    """[d, d] the principal directions of rows [n, d], one a column, the largest variance first."""
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return np.ascontiguousarray(vectors[:, ::-1])


def random_directions(d: int, rng: np.random.Generator) -> np.ndarray:
    """[d, d] a random rotation, one direction a column."""
    q, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return q


def _probe(found: list[tuple[np.ndarray, np.ndarray, np.ndarray, float]]) -> Probe:
    decision, chosen, weights, C = zip(*found, strict=True)
    return Probe(np.stack(decision, 1), list(chosen), list(weights), list(C))


def _rows(
    features: Features, columns: np.ndarray, split: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    found = features[:, columns]
    found = found.toarray() if issparse(found) else found
    return found[split[0]], found[split[1]]


def _by_one_factor(train: Features, test: Features) -> tuple[Features, Features, float]:
    """Both sides times one factor, and the factor: the features that vary get a mean variance of 1 on the training side.

    A sparse matrix is not centred: the intercept is not penalised, so centring would change nothing but speed.
    """
    sparse = issparse(train)
    mean = np.asarray(train.mean(0)).ravel()
    square = np.asarray((train.multiply(train) if sparse else train**2).mean(0)).ravel()
    variance = np.maximum(square - mean**2, 0)
    varies = variance > 1e-12 * square
    factor = float(1 / np.sqrt(variance[varies].mean())) if varies.any() else 0.0
    if sparse:
        return train * factor, test * factor, factor
    return (train - mean) * factor, (test - mean) * factor, factor


def _to_unit_variance(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, sd = train.mean(0), train.std(0)
    factor = np.divide(1, sd, out=np.zeros_like(sd), where=sd > 1e-8 * np.abs(mean))
    return (train - mean) * factor, (test - mean) * factor


def _lenient() -> Any:
    from sklearn import config_context

    return config_context(assume_finite=True, skip_parameter_validation=True)


def _model(C: float, solver: str) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, tol=1e-4, max_iter=300, warm_start=True, solver=solver)


def _fit(
    train: Features, test: Features, target: np.ndarray, C: float, solver: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Decisions on the test documents, weights, C."""
    if target.all() or not target.any():  # a class without training documents (--limit): never predicted
        return np.full(test.shape[0], 1e9 if target.all() else -1e9), np.zeros(train.shape[1]), 0.0
    model = _model(C, solver).fit(train, target)
    return model.decision_function(test), model.coef_[0], C


def _fewest_errors(
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    targets: Sequence[tuple[np.ndarray, np.ndarray]],
    grid: Sequence[float],
    solver: str,
) -> float:
    """The C of the grid with the fewest held-out errors, the largest among equals; each fold goes up the grid."""
    errors = np.zeros(len(grid))
    for (inside, outside), (target, held_out) in zip(folds, targets, strict=True):
        if target.all() or not target.any():
            continue
        model = _model(grid[0], solver)
        for i, C in enumerate(grid):
            model.C = C
            model.fit(inside, target)
            errors[i] += ((model.decision_function(outside) > 0) != held_out).sum()
    return grid[int(np.flatnonzero(errors == errors.min())[-1])]


def _folds(label: np.ndarray, group: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold

    n = min(FOLDS, len(set(group.tolist())))
    if n < 2:
        return []
    # The smallest class may have fewer documents than there are folds: scikit-learn warns, the folds are still right.
    splitter = StratifiedGroupKFold(n, shuffle=True, random_state=stream_seed("probing/folds", seed) % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return [(a, b) for a, b in splitter.split(np.zeros((len(label), 1)), label, group)]
