"""Recovery of planted features by a dictionary: mean cosine under optimal matching, detection, absorption.

Source: SynthSAEBench (arXiv 2602.14687), with three changes. Latents and features are matched one to one (their many-to-one
matching rewards duplicates), by signed cosine where detection is scored (a latent that points away from a feature does not
detect it), and latents that never fire are counted explicitly.
"""

from typing import ClassVar, Self

import pandas as pd
import torch
from torch import Tensor

from saebench import SAE, Batch, Env, Metric, Score, hookimpl
from saebench.metric import Truth

from .matching import Matching, match

# Fewest firings of a parent, with and without a child, for an estimate of its absorption.
_ENOUGH = 10
# F1 above which a feature counts as found.
_FOUND = 0.8


class Planted(Metric):
    """Agreement of an SAE's latents with planted features."""

    name = "planted"
    version = 1
    needs = frozenset({"latents", "truth"})
    about: ClassVar[dict[str, str]] = {
        "mcc": "mean |cosine| of matched latents and features",
        "f1": "mean F1 of a matched latent as detector of its feature, dead latents as 0",
        "f1_live": "the same over latents that fire",
        "precision": "mean precision of matched latents that fire",
        "recall": "mean recall of matched latents",
        "uniqueness": "distinct nearest features per latent",
        "features_found": "features whose nearest latent has F1 above 0.8",
        "absorption": "how much likelier a parent's latent is silent when a child is active",
    }
    truth = "f1"
    headlines = ("f1", "mcc", "features_found", "absorption")

    def __init__(self, sae: SAE) -> None:
        self._decoder = sae.W_dec
        self._matching: Matching | None = None
        self._truth: Truth | None = None
        # Rows: fired and true, fired only, true only; of matched pairs, and of each feature with its nearest latent.
        self.pairs = torch.zeros(0, 3, dtype=torch.int64)
        self.features = torch.zeros(0, 3, dtype=torch.int64)
        # Rows: silent with a child, all with a child, silent without, all without; of each parent.
        self.parents = torch.zeros(0, 4, dtype=torch.int64)
        self.directions = torch.zeros(0)
        self.parent = torch.zeros(0, dtype=torch.int64)

    def update(self, batch: Batch) -> None:
        """Count firings and features over the scored tokens."""
        truth = batch.truth
        matching = self._prepare(truth.directions, truth.parent)
        scored = batch.scored.reshape(-1)
        true = truth.features.reshape(-1, truth.features.shape[-1])[scored] > 0
        latents = batch.latents.select(batch.scored)
        fired = torch.zeros(len(latents), latents.shape[-1], dtype=torch.bool, device=true.device)
        fired[latents.rows(), latents.indices] = True
        self.pairs += _confusion(fired[:, matching.latent], true[:, matching.feature])
        self.features += _confusion(fired[:, matching.nearest], true)
        self.parents += self._silences(fired[:, matching.nearest], true)

    def _prepare(self, directions: Tensor, parent: Tensor) -> Matching:
        if self._matching is None:
            self.directions, self.parent = directions.cpu(), parent.cpu()
            self._matching = match(self._decoder, directions)
            if not len(self.features):
                self.pairs = torch.zeros(len(self._matching.latent), 3, dtype=torch.int64)
                self.features = torch.zeros(len(directions), 3, dtype=torch.int64)
                self.parents = torch.zeros(len(directions), 4, dtype=torch.int64)
        return self._matching

    def _silences(self, fired: Tensor, true: Tensor) -> Tensor:
        """[features, 4] counts for each parent; `fired` and `true` are [tokens, features], `fired` of the nearest latent."""
        children = (self.parent >= 0).nonzero()[:, 0]
        child_active = torch.zeros(true.shape, dtype=torch.float32, device=true.device)
        child_active.index_add_(1, self.parent[children].to(true.device), true[:, children].float())
        with_child, without = true & (child_active > 0), true & (child_active == 0)
        counts = [with_child & ~fired, with_child, without & ~fired, without]
        return torch.stack([c.sum(0) for c in counts], 1).cpu()

    def merge(self, other: Self) -> None:
        """Add the counts of another instance."""
        if not len(other.features):
            return
        matching = self._prepare(other.directions, other.parent)
        del matching
        self.pairs += other.pairs
        self.features += other.features
        self.parents += other.parents

    def units(self) -> pd.DataFrame:
        """One row per feature: its pair's cosine and counts, and its parent's silences. Columns whose `has_` is 0 hold 0."""
        n = len(self.directions)
        matching = self._prepare(self.directions, self.parent)
        frame = pd.DataFrame({"unit_id": range(n), "cluster_id": range(n)})
        frame["cosine"], frame["has_cosine"] = _scatter(n, matching.cosine_feature, matching.cosine)
        hit, extra, miss = self.pairs.double().T
        live, present = hit + extra > 0, hit + miss > 0
        f1 = _ratio(2 * hit, 2 * hit + extra + miss)
        for name, value, where in (
            ("f1", f1, present),
            ("f1_live", f1, present & live),
            ("precision", _ratio(hit, hit + extra), live),
            ("recall", _ratio(hit, hit + miss), present),
        ):
            frame[name], frame[f"has_{name}"] = _scatter(n, matching.feature[where], value[where])
        hit, extra, miss = self.features.double().T
        seen = hit + miss > 0
        frame["has_found"] = seen.double().numpy()
        frame["found"] = ((_ratio(2 * hit, 2 * hit + extra + miss) > _FOUND) & seen).double().numpy()
        silent_with, with_child, silent_without, without = self.parents.double().T
        enough = (with_child >= _ENOUGH) & (without >= _ENOUGH)
        gap = _ratio(silent_with, with_child) - _ratio(silent_without, without)
        frame["absorption"], frame["has_absorption"] = (gap * enough).numpy(), enough.double().numpy()
        return frame

    def scores(self, env: Env) -> list[Score]:
        """Means over features, and the share of distinct matches."""
        scores = [
            Score.ratio(
                key, column, f"has_{column}", direction="higher", count=f"has_{column}", unit="fraction", within=(0.0, 1.0)
            )
            for key, column in (
                ("mcc", "cosine"), ("f1", "f1"), ("f1_live", "f1_live"), ("precision", "precision"), ("recall", "recall"),
                ("features_found", "found"),
            )
        ]  # fmt: skip
        if float(self.units()["has_absorption"].sum()):
            scores.append(
                Score.ratio(
                    "absorption",
                    "absorption",
                    "has_absorption",
                    count="has_absorption",
                    unit="fraction",
                    direction="lower",
                    within=(-1.0, 1.0),
                )
            )
        matching = self._prepare(self.directions, self.parent)
        reason = "read off the weights, which are not a sample"
        n = len(self._decoder)
        scores.append(
            Score.plain("uniqueness", matching.distinct, n=n, no_interval=reason, unit="fraction", direction="higher")
        )
        return scores


def _confusion(fired: Tensor, true: Tensor) -> Tensor:
    """[columns, 3] hits, false alarms and misses of [tokens, columns]."""
    return torch.stack([(fired & true).sum(0), (fired & ~true).sum(0), (~fired & true).sum(0)], 1).cpu()


def _ratio(num: Tensor, den: Tensor) -> Tensor:
    return torch.where(den > 0, num / den.clamp(min=1), 0.0)


def _scatter(n: int, at: Tensor, values: Tensor) -> tuple[list[float], list[float]]:
    """Values at their features, 0 elsewhere; and where there are any."""
    column, has = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    column[at], has[at] = values.double(), 1.0
    return column.tolist(), has.tolist()


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    """The metric `planted`."""
    return [Planted]
