"""k-sparse probing: the label of a document predicted from k latents, between a floor and a ceiling on the same split.

Definitions: metrics.md, "k-sparse probing". Latents are pooled over a document's scored tokens in `update`; probes are
fitted on the training documents in `scores`; the units are the test documents.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from saebench import SAE, Batch, Env, Latents, Metric, SaebenchError, Score, hookimpl
from saebench.labels import Labels, require_sides
from saebench.presentation import Figure, Reference
from saebench.stats import Ratio, auroc_interval, ratio_interval

from .baselines import baselines
from .floors import over_draws
from .pooling import POOLS, pool_dense, pool_latents, sparse_rows
from .probes import C_ALL, Documents, Probe
from .random_sae import FLOORS, RandomSAE

KS = (1, 2, 5, 16, 128)
# The place on the curves that the headline is read at, and the probes whose weights a record holds: up to that k.
HEADLINE = ("mean", 16)
# How many of the latents chosen for a class a record names.
NAMED = 128
_FLOOR = "random_sae"
_ABOUT = {
    "accuracy": "test documents whose label a probe on 16 latents per class predicts",
    "balanced_accuracy": "the mean of the classes' accuracies",
    "auroc": "area under the ROC curve of the probe; chance is 0.5",
    "gap_to_dense": "accuracy minus that of a probe on x itself (the ceiling)",
    "gap_to_random_sae": "accuracy minus the mean of three random SAEs (the floor); falls with L0, so compare it at matched L0",
    "dense_accuracy": "accuracy of a probe on x itself",
    "random_sae_accuracy": "accuracy of 16 latents per class of a random SAE, mean of three",
    "majority_rate": "accuracy of always predicting the most frequent label",
}


def _figure(pool: str) -> Figure:
    """Accuracy against k, between the ceiling and the floors."""
    references = (
        Reference(f"{pool}_dense_accuracy", "all of x (dense probe)", shared=True),
        Reference(f"{pool}_pca_accuracy", "k principal directions", shared=True),
        Reference(f"{pool}_random_accuracy", "k random directions", shared=True),
        Reference("majority_rate", "majority class", shared=True),
        Reference(f"{pool}_random_sae_accuracy", "random weights"),
    )
    return Figure(f"{pool}_sae_accuracy", "at", "latents a class (k)", f"accuracy, {pool}-pooled", references)


class Probing(Metric):
    """accuracy, balanced accuracy and AUROC against k, mean- and max-pooled, of the SAE and of every baseline.

    Sources: `sae`; `random_sae`, the mean of three random dictionaries (same shape, same L0 on each token), drawn from a random
    stream of their own; `dense` (x itself, all of it); `pca` and `random` (k of the principal or of random directions of x,
    chosen as latents are). Units: test documents; clusters: the task's groups. Intervals of `random_sae` and of the gap to it
    hold the variance of the floors. No interval where a label has but one group on the test side.

    The pooled latents are multiplied by the norm of their decoder row, so that the scale of a latent does not matter. The k
    latents with the largest difference of class means on the training side are divided by one common factor (mean variance 1),
    and C is chosen by cross-validation whose folds choose latents and factor anew; all latents have a fixed C.

    Headline, at k = 16 and mean pooling: `accuracy`, `balanced_accuracy`, `auroc`, `gap_to_dense` and `gap_to_random_sae`
    (paired over documents), `dense_accuracy`, `random_sae_accuracy`, `majority_rate`. The gap to the random SAE has no direction:
    the floor has the SAE's L0, and with more latents per token it rises faster than the SAE. Curves, with a point for each k in
    1, 2, 5, 16, 128 and all: `mean_SOURCE_accuracy`, `mean_SOURCE_balanced_accuracy`, `mean_SOURCE_auroc`, `mean_gap_to_dense`,
    `mean_gap_to_random_sae`, and the same with `max_`.
    """

    name = "probing"
    version = 3
    seeded = True
    needs = frozenset({"latents", "x_read", "labels"})
    about = _ABOUT
    headlines = ("accuracy", "balanced_accuracy", "auroc", "gap_to_dense", "gap_to_random_sae")
    figures = tuple(_figure(pool) for pool in POOLS)

    def __init__(self, sae: SAE) -> None:
        self.rows: list[dict[str, Any]] = []
        self.classes: list[str] = []
        self._d_sae, self._d_in, self._transcoder = sae.d_sae, sae.d_in, sae.is_transcoder
        self._scale = sae.W_dec.double().norm(dim=1).cpu().numpy()
        self._floors: list[RandomSAE] = []
        self._units = pd.DataFrame({"unit_id": [], "cluster_id": []})
        self._probes: dict[tuple[str, str, int], Probe] = {}
        self._left_out: dict[str, Any] = {}

    def update(self, batch: Batch) -> None:
        """Pool the latents, and the activations they are compared with, over each document."""
        scored, labels = batch.scored, batch.labels
        latents = batch.latents.select(scored)
        x = batch.x_read
        row: dict[str, Any] = {
            "unit_id": batch.context_id,
            "cluster_id": batch.document_id,
            "label": labels.label,
            "test": labels.test,
            "group": labels.group,
            "tokens": scored.sum(1).cpu().numpy(),
            "x": pool_dense(x, scored),
            "sae": pool_latents(latents, scored),
        }
        for name, floor in zip(_floor_names(), self._floor_latents(batch, latents), strict=True):
            row[name] = pool_latents(floor, scored)
        self.rows.append(row)
        self.classes = list(labels.classes)

    def _floor_latents(self, batch: Batch, latents: Latents) -> list[Latents]:
        x = batch.x_read[batch.scored]
        if not self._floors:
            self._floors = [RandomSAE(self._d_in, self._d_sae, x.device, batch.seed, i) for i in range(FLOORS)]
        if not len(x):
            return [latents] * FLOORS
        found = batch.read_mean if self._transcoder else batch.calibration_mean
        centre, counts = torch.zeros_like(x[0]) if found is None else found, latents.counts()
        return [floor.encode(x, centre, counts) for floor in self._floors]

    def merge(self, other: "Probing") -> None:
        self.rows += other.rows
        self.classes = self.classes or other.classes

    def units(self) -> pd.DataFrame:
        """One row per test document; `scores` makes them."""
        return self._units

    def scores(self, env: Env) -> list[Score]:
        """Fit probes on the training documents, and score them on the test documents beside the baselines."""
        if not self.rows:
            raise SaebenchError("no document was seen")
        order = np.argsort(self._column("unit_id"), kind="stable")
        labels = Labels(tuple(self.classes), *(self._column(name)[order] for name in ("label", "test", "group")))
        require_sides(labels)
        documents = Documents(labels, env.seed)
        ks = self._ks(len(documents.train))
        self._left_out["documents without a scored token"] = int((self._column("tokens") == 0).sum())
        self._fit(documents, order, ks, env)
        clusters = self._column("cluster_id")[order][labels.test]
        self._units = self._make_units(documents, self._column("unit_id")[order][labels.test], clusters, ks)
        scores = [*self._headline(ks, clusters), *self._curves(clusters, ks)]
        reason = few_groups(labels)
        return scores if reason is None else [self._without_interval(score, reason) for score in scores]

    def _fit(self, documents: Documents, order: np.ndarray, ks: list[int], env: Env) -> None:
        self._probes = {}
        for pool in POOLS:
            for source in ("sae", *_floor_names()):
                features = sparse_rows([row[source] for row in self.rows], pool, self._d_sae)[order].astype(np.float64)
                if source == "sae":
                    features = features.multiply(self._scale[None, :]).tocsr()
                for k, probe in documents.sparse_probes(features, ks).items():
                    self._probes[pool, source, k] = probe
                self._probes[pool, source, self._d_sae] = documents.full_probe(features)
            x = np.concatenate([row["x"][pool] for row in self.rows])[order]
            for (source, k), probe in baselines(x, documents, ks, env.cache, env.seed).items():
                self._probes[pool, source, k] = probe

    def _without_interval(self, score: Score, reason: str) -> Score:
        """The same number, with the reason why it has no interval."""
        about: dict[str, Any] = {
            "unit": score.unit,
            "direction": score.direction,
            "at": score.at,
            "no_interval": reason,
        }
        if score.num is None:
            return Score.plain(score.key, float(score.value or 0.0), n=int(score.n or 0), **about)
        found = ratio_interval(self._units, score)
        return Score.plain(score.key, found.value, n=found.n, **about)

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([row[name] for row in self.rows])

    def _ks(self, train: int) -> list[int]:
        """The k there are latents and documents for; all latents are always a point of their own."""
        allowed = [k for k in KS if k < self._d_sae]
        ks = [k for k in allowed if k <= train]
        if ks != allowed:
            self._left_out["k above the number of training documents"] = [k for k in allowed if k not in ks]
        return ks

    def _make_units(self, documents: Documents, unit: np.ndarray, cluster: np.ndarray, ks: list[int]) -> pd.DataFrame:
        """Right or wrong (1 or 0) of every probe on every test document, and what the gaps are made of."""
        label = documents.labels.label[documents.test]
        sizes = np.bincount(label, minlength=len(self.classes))
        present = int((sizes > 0).sum())
        weight = 1 / (present * sizes[label])
        most_common = np.bincount(documents.labels.label[documents.train], minlength=len(self.classes)).argmax()
        columns: dict[str, np.ndarray] = {
            "unit_id": unit, "cluster_id": cluster, "label": label, "one": np.ones(len(label)), "weight": weight,
            "majority": (label == most_common).astype(float),
        }  # fmt: skip
        for (pool, source, k), probe in self._probes.items():
            right = (documents.predicted(probe.decision) == label).astype(float)
            columns[f"{pool}_{source}_{k}"] = right
            columns[f"{pool}_{source}_{k}_balanced"] = right * weight
        for pool in POOLS:
            for k in (*ks, self._d_sae):
                for end in ("", "_balanced"):
                    floors = [columns[f"{pool}_{floor}_{k}{end}"] for floor in _floor_names()]
                    columns[f"{pool}_{_FLOOR}_{k}{end}"] = np.mean(floors, 0)
                own = columns[f"{pool}_sae_{k}"]
                columns[f"{pool}_gap_dense_{k}"] = own - columns[f"{pool}_dense_{self._d_in}"]
                columns[f"{pool}_gap_{_FLOOR}_{k}"] = own - columns[f"{pool}_{_FLOOR}_{k}"]
        decision = self._probes[HEADLINE[0], "sae", self._headline_k(ks)].decision
        names = ["decision"] if decision.shape[1] == 1 else [f"decision_{c}" for c in range(decision.shape[1])]
        columns |= dict(zip(names, decision.T, strict=True))
        return pd.DataFrame(columns)

    def _headline_k(self, ks: list[int]) -> int:
        return HEADLINE[1] if HEADLINE[1] in ks else self._d_sae

    def _headline(self, ks: list[int], clusters: np.ndarray) -> Iterator[Score]:
        pool, k = HEADLINE[0], self._headline_k(ks)
        yield _share("accuracy", f"{pool}_sae_{k}", "one", direction="higher")
        yield _share("balanced_accuracy", f"{pool}_sae_{k}_balanced", "weight", direction="higher")
        yield Score.auroc("auroc", "decision", "label")
        yield _gap("gap_to_dense", f"{pool}_gap_dense_{k}", direction="higher")
        yield self._over_floors(_gap("gap_to_random_sae", f"{pool}_gap_{_FLOOR}_{k}"), pool, k)
        yield _share("dense_accuracy", f"{pool}_dense_{self._d_in}", "one")
        yield self._over_floors(_share("random_sae_accuracy", f"{pool}_{_FLOOR}_{k}", "one"), pool, k)
        yield _share("majority_rate", "majority", "one")

    def _curves(self, clusters: np.ndarray, ks: list[int]) -> Iterator[Score]:
        for pool, source, k in self._probes:
            if source in _floor_names():
                continue
            name, at = f"{pool}_{source}", float(k)
            yield _share(f"{name}_accuracy", f"{name}_{k}", "one", at)
            yield _share(f"{name}_balanced_accuracy", f"{name}_{k}_balanced", "weight", at)
            yield self._auroc(f"{name}_auroc", [(pool, source, k)], clusters, at)
        for pool in POOLS:
            for k in (*ks, self._d_sae):
                name, at = f"{pool}_{_FLOOR}", float(k)
                yield self._over_floors(_share(f"{name}_accuracy", f"{name}_{k}", "one", at), pool, k)
                balanced = _share(f"{name}_balanced_accuracy", f"{name}_{k}_balanced", "weight", at)
                yield self._over_floors(balanced, pool, k)
                yield self._auroc(f"{name}_auroc", [(pool, floor, k) for floor in _floor_names()], clusters, at)
                yield _gap(f"{pool}_gap_to_dense", f"{pool}_gap_dense_{k}", at)
                yield self._over_floors(_gap(f"{pool}_gap_to_{_FLOOR}", f"{pool}_gap_{_FLOOR}_{k}", at), pool, k)

    def _over_floors(self, score: Score, pool: str, k: int) -> Score:
        """A score whose column is the mean over floors, with their variance in its interval."""
        found = ratio_interval(self._units, score)
        end = "_balanced" if str(score.num).endswith("_balanced") else ""
        draws = [
            ratio_interval(self._units, Ratio(f"{pool}_{floor}_{k}{end}", str(score.den))).value
            for floor in _floor_names()
        ]
        return self._with_draws(score, (found.value, found.low, found.high, found.no_interval), draws)

    def _auroc(self, key: str, probes: list[tuple[str, str, int]], clusters: np.ndarray, at: float) -> Score:
        """The mean area of these probes; that of several is over floors."""
        label = self._units["label"].to_numpy()
        found = [auroc_interval(self._probes[probe].decision, label, clusters) for probe in probes]
        value = float(np.mean([one.value for one in found]))
        reason = next((one.no_interval for one in found if one.no_interval), None)
        low = high = None
        if reason is None:
            # The areas share their documents: the mean of their ends errs to the wide side.
            low, high = (float(np.mean(ends)) for ends in zip(*((one.low, one.high) for one in found), strict=True))
        score = Score(key, "area", None, at, within=(0, 1))
        return self._with_draws(score, (value, low, high, reason), [one.value for one in found])

    def _with_draws(
        self, score: Score, found: tuple[float, float | None, float | None, str | None], draws: list[float]
    ) -> Score:
        value, low, high, reason = found
        about: dict[str, Any] = {
            "n": len(self._units),
            "unit": score.unit,
            "direction": score.direction,
            "at": score.at,
        }
        if low is None or high is None:
            return Score.plain(score.key, value, no_interval=reason or "no interval", **about)
        if len(draws) > 1:
            low, high = over_draws(value, low, high, np.array(draws))
        least, most = score.within or (-np.inf, np.inf)
        return Score.with_interval(score.key, value, max(low, least), min(high, most), **about)

    def details(self) -> dict[str, Any]:
        """The latents chosen for each class, best first, and the weights of small probes (on latents times decoder norm)."""
        two = len(self.classes) == 2
        names = self.classes[1:] if two else self.classes
        probes = []
        for (pool, source, k), probe in self._probes.items():
            if source != "sae" or not len(probe.chosen[0]):
                continue
            for c, name in enumerate(names):
                entry: dict[str, Any] = {"pool": pool, "k": k, "class": name, "C": probe.C[c]}
                entry["latents"] = probe.chosen[c][:NAMED].tolist()
                if k <= HEADLINE[1]:
                    entry["weights"] = [float(f"{w:.6g}") for w in probe.weights[c]]
                probes.append(entry)
        about = {"pool": HEADLINE[0], "k": HEADLINE[1], "C_all": C_ALL, "floors": FLOORS}
        return {"headline": about, "left_out": self._left_out, "probes": probes}


def few_groups(labels: Labels) -> str | None:
    """The reason why there can be no interval, if any: one is over groups, and a label needs two of them on the test side."""
    for c, name in enumerate(labels.classes):
        groups = len(set(labels.group[labels.test & (labels.label == c)].tolist()))
        if groups == 1:
            return f"label '{name}' has one group on the test side: the variance between groups is unknown"
    return None


def _floor_names() -> list[str]:
    return [f"{_FLOOR}_{i}" for i in range(FLOORS)]


def _share(key: str, num: str, den: str, at: float | None = None, direction: Any = None) -> Score:
    return Score.ratio(key, num, den, unit="fraction", direction=direction, at=at, within=(0, 1))


def _gap(key: str, num: str, at: float | None = None, direction: Any = None) -> Score:
    return Score.ratio(key, num, "one", unit="fraction", direction=direction, at=at, within=(-1, 1))


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [Probing]
