"""k-sparse probing: how well k latents predict the label of a document, beside baselines on the same split.

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

from .baselines import baselines
from .pooling import POOLS, pool_dense, pool_latents, sparse_rows
from .probes import C_ALL, Documents, Probe, auroc
from .random_sae import RandomSAE

KS = (1, 2, 5, 16, 128)
# Pool and k of the headline scores; a record holds the weights of probes up to that k.
HEADLINE = ("mean", 16)
# The most latents per class that a record lists.
NAMED = 128
# Captions of the scores.
_ABOUT = {
    "accuracy": "test documents whose label 16 latents a class tell",
    "balanced_accuracy": "the same, every class counting alike",
    "auroc": "how well they order documents; chance is a half",
    "gap_to_dense": "accuracy less that of a probe on x itself (the ceiling)",
    "gap_to_random_sae": "accuracy less that of a random SAE (the floor)",
    "dense_accuracy": "accuracy of a probe on x itself",
    "random_sae_accuracy": "accuracy of 16 latents of a random SAE",
    "majority_rate": "accuracy of always saying the commonest label",
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

    Sources: `sae`; `random_sae` (same shape, same L0 on each token); `dense` (x itself, all of it); `pca` and `random` (k of
    the principal or of random directions of x, chosen as latents are). Units: test documents; clusters: the task's groups.
    No interval where a label has but one group on the test side.

    Headline, at k = 16 and mean pooling: `accuracy`, `balanced_accuracy`, `auroc`, `gap_to_dense` and `gap_to_random_sae`
    (paired over documents), `dense_accuracy`, `random_sae_accuracy`, `majority_rate`. Curves, with a point for each k in
    1, 2, 5, 16, 128 and all: `mean_SOURCE_accuracy`, `mean_SOURCE_balanced_accuracy`, `mean_SOURCE_auroc`, `mean_gap_to_dense`,
    `mean_gap_to_random_sae`, and the same with `max_`.
    """

    name = "probing"
    version = 2
    seeded = True
    needs = frozenset({"latents", "x_read", "labels"})
    about = _ABOUT
    figures = tuple(_figure(pool) for pool in POOLS)

    def __init__(self, sae: SAE) -> None:
        self.rows: list[dict[str, Any]] = []
        self.classes: list[str] = []
        self._d_sae, self._d_in, self._transcoder = sae.d_sae, sae.d_in, sae.is_transcoder
        self._scale = sae.W_dec.double().norm(dim=1).cpu().numpy()
        self._random: RandomSAE | None = None
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
            "random_sae": pool_latents(self._random_latents(batch, latents), scored),
        }
        self.rows.append(row)
        self.classes = list(labels.classes)

    def _random_latents(self, batch: Batch, latents: Latents) -> Latents:
        x = batch.x_read[batch.scored]
        if self._random is None:
            self._random = RandomSAE(self._d_in, self._d_sae, x.device)
        if not len(x):
            return latents
        centre = batch.read_mean if self._transcoder else batch.calibration_mean
        return self._random.encode(x, torch.zeros_like(x[0]) if centre is None else centre, latents.counts())

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
        documents = Documents(labels)
        ks = self._ks(len(documents.train))
        self._left_out["documents without a scored token"] = int((self._column("tokens") == 0).sum())
        self._probes = {}
        for pool in POOLS:
            for source in ("sae", "random_sae"):
                features = sparse_rows([row[source] for row in self.rows], pool, self._d_sae)[order]
                scale = self._scale if source == "sae" else None
                rankings = documents.rankings(features, scale)
                for k in ks:
                    self._probes[pool, source, k] = documents.probe(features, rankings, k, None)
                self._probes[pool, source, self._d_sae] = documents.probe(features, None, None, C_ALL)
            x = np.concatenate([row["x"][pool] for row in self.rows])[order]
            for (source, k), probe in baselines(x, documents, ks, env.cache).items():
                self._probes[pool, source, k] = probe
        clusters = self._column("cluster_id")[order][labels.test]
        self._units = self._make_units(documents, self._column("unit_id")[order][labels.test], clusters, ks)
        scores = [*self._headline(ks, documents, clusters), *self._curves(documents, clusters, ks)]
        reason = few_groups(labels)
        return scores if reason is None else [self._without_interval(score, reason) for score in scores]

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
        value = float(self._units[score.num].sum() / self._units[str(score.den)].sum())
        return Score.plain(score.key, value, n=len(self._units), **about)

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
        """One row per test document: 1 or 0 (right or wrong) for each probe, and the terms of the gaps."""
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
                own = columns[f"{pool}_sae_{k}"]
                columns[f"{pool}_gap_dense_{k}"] = own - columns[f"{pool}_dense_{self._d_in}"]
                columns[f"{pool}_gap_random_sae_{k}"] = own - columns[f"{pool}_random_sae_{k}"]
        return pd.DataFrame(columns)

    def _headline(self, ks: list[int], documents: Documents, clusters: np.ndarray) -> Iterator[Score]:
        pool, wanted = HEADLINE
        k = wanted if wanted in ks else self._d_sae
        yield _share("accuracy", f"{pool}_sae_{k}", "one", direction="higher")
        yield _share("balanced_accuracy", f"{pool}_sae_{k}_balanced", "weight", direction="higher")
        yield self._auroc("auroc", (pool, "sae", k), documents, clusters, direction="higher")
        yield _gap("gap_to_dense", f"{pool}_gap_dense_{k}", direction="higher")
        yield _gap("gap_to_random_sae", f"{pool}_gap_random_sae_{k}", direction="higher")
        yield _share("dense_accuracy", f"{pool}_dense_{self._d_in}", "one")
        yield _share("random_sae_accuracy", f"{pool}_random_sae_{k}", "one")
        yield _share("majority_rate", "majority", "one")

    def _curves(self, documents: Documents, clusters: np.ndarray, ks: list[int]) -> Iterator[Score]:
        for pool, source, k in self._probes:
            name, at = f"{pool}_{source}", float(k)
            yield _share(f"{name}_accuracy", f"{name}_{k}", "one", at)
            yield _share(f"{name}_balanced_accuracy", f"{name}_{k}_balanced", "weight", at)
            yield self._auroc(f"{name}_auroc", (pool, source, k), documents, clusters, at)
        for pool in POOLS:
            for rival in ("dense", "random_sae"):
                for k in (*ks, self._d_sae):
                    yield _gap(f"{pool}_gap_to_{rival}", f"{pool}_gap_{rival}_{k}", float(k))

    def _auroc(
        self, key: str, probe: tuple[str, str, int], documents: Documents, clusters: np.ndarray, at: float | None = None,
        direction: Any = None,
    ) -> Score:  # fmt: skip
        label = documents.labels.label[documents.test]
        area, half = auroc(self._probes[probe].decision, label, clusters)
        about: dict[str, Any] = {"n": len(label), "unit": "area", "direction": direction, "at": at}
        if half is None:
            return Score.plain(key, area, no_interval="all test documents are one cluster", **about)
        return Score.with_interval(key, area, max(0.0, area - half), min(1.0, area + half), **about)

    def details(self) -> dict[str, Any]:
        """The latents chosen for each class, best first, and the weights of small probes (on latents scaled to unit variance)."""
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
        about = {"pool": HEADLINE[0], "k": HEADLINE[1], "C_all": C_ALL}
        return {"headline": about, "left_out": self._left_out, "probes": probes}


def few_groups(labels: Labels) -> str | None:
    """The reason for no interval where a label has one group on the test side: the variance between groups is unknown."""
    for c, name in enumerate(labels.classes):
        groups = len(set(labels.group[labels.test & (labels.label == c)].tolist()))
        if groups == 1:
            return f"label '{name}' has one group on the test side: how much groups differ cannot be told"
    return None


def _share(key: str, num: str, den: str, at: float | None = None, direction: Any = None) -> Score:
    return Score.ratio(key, num, den, unit="fraction", direction=direction, at=at, within=(0, 1))


def _gap(key: str, num: str, at: float | None = None, direction: Any = None) -> Score:
    return Score.ratio(key, num, "one", unit="fraction", direction=direction, at=at, within=(-1, 1))


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [Probing]
