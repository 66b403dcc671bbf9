"""Downstream preservation: the share of a probe's accuracy on x that remains on the reconstruction.

A logistic regression is fitted on x of the training side and applied, unchanged, to x and to x̂ of the test side.
"""

from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from saebench import SAE, Batch, Env, Metric, Score, hookimpl
from saebench.labels import Labels, require_sides


class Preservation(Metric):
    """preservation: accuracy of the probe on x̂ over its accuracy on x, both on held-out items.

    Items of several positions are averaged over their scored positions. Units: held-out items, in clusters of their groups.
    """

    name = "preservation"
    version = 1
    needs = frozenset({"x", "reconstruction", "labels"})
    about: ClassVar[dict[str, str]] = {
        "preservation": "accuracy on x̂ of a probe fitted on x, as a share of its accuracy on x",
        "accuracy_x": "the probe's accuracy on x",
        "accuracy_reconstruction": "its accuracy on x̂",
    }
    headlines = ("preservation",)

    def __init__(self, sae: SAE) -> None:
        self.rows: list[dict[str, Any]] = []
        self.classes: list[str] = []
        self._units = pd.DataFrame({"unit_id": [], "cluster_id": []})

    def update(self, batch: Batch) -> None:
        """Keep each item's mean activation and mean reconstruction."""
        mask = batch.scored[..., None]
        count = mask.sum(1).clamp(min=1)
        pooled = [((v * mask).sum(1, dtype=v.dtype) / count).cpu().numpy() for v in (batch.x, batch.reconstruction)]
        labels = batch.labels
        self.classes = list(labels.classes)
        self.rows.append(
            {"unit_id": np.asarray(batch.context_id), "label": labels.label, "test": labels.test, "group": labels.group,
             "x": pooled[0], "reconstruction": pooled[1]}
        )  # fmt: skip

    def merge(self, other: Self) -> None:
        """Add the items of another instance."""
        self.rows += other.rows
        self.classes = self.classes or other.classes

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([row[name] for row in self.rows])

    def units(self) -> pd.DataFrame:
        """One row per held-out item: whether the probe is correct on x, and on x̂."""
        return self._units

    def scores(self, env: Env) -> list[Score]:
        """Fit the probe, apply it to both.

        Raises:
            SaebenchError: a class is missing on one side of the split.
        """
        order = np.argsort(self._column("unit_id"), kind="stable")
        label, test, group = (self._column(name)[order] for name in ("label", "test", "group"))
        require_sides(Labels(tuple(self.classes), label, test, group))
        x, hat = (self._column(name)[order].astype(np.float64) for name in ("x", "reconstruction"))
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe.fit(x[~test], label[~test])
        right, kept = (probe.predict(v[test]) == label[test] for v in (x, hat))
        self._units = pd.DataFrame(
            {"unit_id": self._column("unit_id")[order][test], "cluster_id": group[test], "one": 1.0,
             "right": right.astype(float), "kept": kept.astype(float)}
        )  # fmt: skip
        return [
            Score.ratio("preservation", "kept", "right", unit="fraction", direction="higher"),
            Score.ratio("accuracy_x", "right", "one", unit="fraction", within=(0.0, 1.0)),
            Score.ratio(
                "accuracy_reconstruction", "kept", "one", unit="fraction", direction="higher", within=(0.0, 1.0)
            ),
        ]


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    """The metric `preservation`."""
    return [Preservation]
