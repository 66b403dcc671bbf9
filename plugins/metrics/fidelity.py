"""Fidelity: how well x̂ stands in for x, as a vector and as what the model goes on with.

Definitions: metrics.md, "Fidelity". Every score is a ratio of sums over contexts, so each has an interval over documents.
"""

import numpy as np
import pandas as pd
import torch

from saebench import SAE, Batch, Env, Metric, Score, hookimpl
from saebench.metric import Rows


class Fidelity(Metric):
    """explained_variance, mse, cosine, l2_ratio, bias, normalized_mse, cross-entropies, loss_recovered, KL.

    Scores are over scored tokens, explained_variance_all over every token that is not special. Cross-entropies are of the
    predictions made from scored positions that have a next token in the context. Units: contexts.
    """

    name = "fidelity"
    version = 1
    needs = frozenset({"x", "reconstruction", "token_losses"})

    def __init__(self, sae: SAE) -> None:
        self.rows = Rows()
        # Σ(x − c) over scored and over all tokens: with c the calibration mean, what turns Σ‖x − c‖² into Σ‖x − μ‖².
        self.shift = np.zeros(sae.d_out)
        self.shift_all = np.zeros(sae.d_out)

    def update(self, batch: Batch) -> None:
        x, xh, scored, per = batch.x, batch.reconstruction, batch.scored, batch.per_context
        normal = ~batch.special
        assert batch.calibration_mean is not None
        from_c = x - batch.calibration_mean
        error, spread = _square(x - xh), _square(from_c)
        norm, norm_hat = x.double().norm(dim=-1), xh.double().norm(dim=-1)
        dot = (x * xh).sum(-1, dtype=torch.float64)
        # A zero vector has no direction and no scale: its cosine and ratio count as 0.
        cosine = dot / (norm * norm_hat).clamp_min(1e-300)
        losses = batch.token_losses
        ones = torch.ones_like(scored, dtype=torch.float64)
        self.shift += _sum_vectors(from_c, scored)
        self.shift_all += _sum_vectors(from_c, normal)
        self.rows.add(
            batch,
            tokens=per(ones),
            tokens_all=per(ones, normal),
            sse=per(error),
            sse_all=per(error, normal),
            spread=per(spread),
            spread_all=per(spread, normal),
            cosine=per(cosine),
            l2_ratio=per(norm_hat / norm.clamp_min(1e-300)),
            dot=per(dot),
            square_hat=per(norm_hat.square()),
            normalized_mse=per(_normalized_error(x, xh)),
            predictions=per(ones, losses.predicted),
            clean=per(losses.clean, losses.predicted),
            spliced=per(losses.spliced, losses.predicted),
            zero=per(losses.zero, losses.predicted),
            mean=per(losses.mean, losses.predicted),
            kl=per(losses.kl),
        )

    def merge(self, other: "Fidelity") -> None:
        self.rows.merge(other.rows)
        self.shift += other.shift
        self.shift_all += other.shift_all

    def units(self) -> pd.DataFrame:
        """One row per context. `variance` is Σ‖x − μ‖² with μ the mean over all scored tokens of the run.

        Exact in the total; a context's own share leaves out a term that sums to zero over contexts.
        """
        u = self.rows.frame()
        for suffix, shift in (("", self.shift), ("_all", self.shift_all)):
            n = u[f"tokens{suffix}"]
            between = float(np.sum((shift / max(n.sum(), 1)) ** 2))
            u[f"variance{suffix}"] = u.pop(f"spread{suffix}") - n * between
        u["increase"] = u["spliced"] - u["clean"]
        for ablated in ("zero", "mean"):
            u[f"{ablated}_recovered"] = u[ablated] - u["spliced"]
            u[f"{ablated}_lost"] = u[ablated] - u["clean"]
        return u

    def scores(self, env: Env) -> list[Score]:
        def per_token(key: str, column: str, **more: object) -> Score:
            return Score.ratio(key, column, "tokens", count="tokens", **more)  # type: ignore[arg-type]

        def per_prediction(key: str, column: str, **more: object) -> Score:
            return Score.ratio(key, column, "predictions", count="predictions", unit="nats/token", **more)  # type: ignore[arg-type]

        share = {"unit": "fraction", "direction": "higher"}
        return [
            Score.ratio("explained_variance", "sse", "variance", offset=1, scale=-1, count="tokens", **share),  # type: ignore[arg-type]
            Score.ratio(
                "explained_variance_all", "sse_all", "variance_all", offset=1, scale=-1, count="tokens_all", **share
            ),  # type: ignore[arg-type]
            per_token("mse", "sse", unit="squared activation", direction="lower"),
            per_token("cosine", "cosine", unit="cosine", direction="higher"),
            per_token("l2_ratio", "l2_ratio", unit="ratio"),
            Score.ratio("relative_reconstruction_bias", "square_hat", "dot", unit="ratio", count="tokens"),
            per_token("normalized_mse", "normalized_mse", unit="variance of the token", direction="lower"),
            per_prediction("ce_clean", "clean"),
            per_prediction("ce_spliced", "spliced", direction="lower"),
            per_prediction("ce_zero", "zero"),
            per_prediction("ce_mean", "mean"),
            per_prediction("ce_increase", "increase", direction="lower"),
            per_token("kl", "kl", unit="nats/token", direction="lower"),
            Score.ratio("loss_recovered_zero", "zero_recovered", "zero_lost", count="predictions", **share),  # type: ignore[arg-type]
            Score.ratio("loss_recovered_mean", "mean_recovered", "mean_lost", count="predictions", **share),  # type: ignore[arg-type]
        ]


def _square(v: torch.Tensor) -> torch.Tensor:
    return v.square().sum(-1, dtype=torch.float64)


def _sum_vectors(v: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Σ over the masked tokens, context by context so that batches do not matter: float64 [d]."""
    masked = torch.where(mask[..., None], v, 0).sum(1, dtype=torch.float64)
    return masked.sum(0).cpu().numpy()


def _normalized_error(x: torch.Tensor, xh: torch.Tensor) -> torch.Tensor:
    """Mean over d of the squared difference, both shifted and scaled by the token's own mean and (unbiased) sd of x."""
    return (x - xh).double().square().mean(-1) / x.double().var(-1).clamp_min(1e-300)


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [Fidelity]
