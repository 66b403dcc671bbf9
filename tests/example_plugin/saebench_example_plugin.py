"""Two metrics in one file: how far a reconstruction misses an activation's length, and how far the model notices its error."""

import numpy as np
import pandas as pd
import torch

from saebench import SAE, Batch, Env, Metric, Score, hookimpl
from saebench.lens import Activations
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


class LastToken(Metric):
    """KL of the prediction after a context when the last activation is replaced by its reconstruction: runs the model."""

    name = "last_token"
    version = 1
    needs = frozenset({"x"})
    uses_lens = True

    def __init__(self, sae: SAE) -> None:
        self.contexts: list[dict[str, np.ndarray]] = []

    def update(self, batch: Batch) -> None:
        self.contexts.append(
            {"unit_id": batch.context_id, "cluster_id": batch.document_id, "token_ids": batch.token_ids.cpu().numpy()}
        )

    def merge(self, other: "LastToken") -> None:
        self.contexts += other.contexts

    def scores(self, env: Env) -> list[Score]:
        lens = env.lens
        columns = {name: np.concatenate([part[name] for part in self.contexts]) for name in self.contexts[0]}
        order = np.argsort(columns["unit_id"])
        self._units = pd.DataFrame({name: columns[name][order] for name in ("unit_id", "cluster_id")}).assign(
            contexts=1.0
        )

        def splice(at: Activations) -> torch.Tensor:
            x = at.x.clone()
            x[:, -1] = env.sae(at.x_read[:, -1:])[:, 0].to(x.dtype)
            return x

        def one(context: int) -> float:
            token_ids = columns["token_ids"][columns["unit_id"] == context]
            return float(lens.fork(torch.from_numpy(token_ids), splice).kl())

        # Finished contexts are on disk: a killed run does the rest.
        self._units["kl"] = lens.units("last token", self._units["unit_id"].tolist(), one)
        return [Score.ratio("kl", "kl", "contexts", unit="nats", direction="lower")]

    def units(self) -> pd.DataFrame:
        """One row per context: KL(clean ‖ spliced) of the token after it."""
        return self._units


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [NormError, LastToken]
