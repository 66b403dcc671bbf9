"""How far an SAE's reconstruction misses the length of an activation: a whole plugin, in one file."""

import pandas as pd

from saebench import SAE, Batch, Env, Metric, Score, hookimpl
from saebench.metric import Rows


class NormError(Metric):
    """How far the reconstruction's length is from the activation's, as a share of it."""

    name = "norm_error"
    version = 1
    needs = frozenset({"x", "reconstruction"})

    def __init__(self, sae: SAE) -> None:
        self.rows = Rows()

    def update(self, batch: Batch) -> None:
        length, rebuilt = (v.double().norm(dim=-1) for v in (batch.x, batch.reconstruction))
        self.rows.add(
            batch,
            tokens=batch.per_context(batch.scored.double()),
            error=batch.per_context((rebuilt - length).abs()),
            length=batch.per_context(length),
        )

    def merge(self, other: "NormError") -> None:
        self.rows.merge(other.rows)

    def units(self) -> pd.DataFrame:
        """One row per context: tokens, Σ|‖x̂‖ − ‖x‖|, Σ‖x‖."""
        return self.rows.frame()

    def scores(self, env: Env) -> list[Score]:
        return [
            Score.ratio("norm_error", "error", "length", unit="fraction", direction="lower", count="tokens"),
            Score.ratio("mean_norm", "length", "tokens", unit="activation", count="tokens"),
        ]


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [NormError]
