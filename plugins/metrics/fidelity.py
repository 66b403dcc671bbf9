"""Fidelity: how well x̂ replaces x, as a vector and as the input of the model's later layers.

Every score is a ratio of sums over contexts, so each has an interval over documents.
"""

from typing import Literal

import numpy as np
import pandas as pd
import torch

from saebench import SAE, Batch, Env, Metric, Score, hookimpl
from saebench.metric import Rows

# Captions of the scores.
_ABOUT = {
    "explained_variance": "share of the activations' variance that x̂ explains",
    "explained_variance_all": "the same with the outliers that are not scored",
    "mse": "mean ‖x − x̂‖²",
    "cosine": "mean cosine of x and x̂",
    "l2_ratio": "mean ‖x̂‖/‖x‖; below 1 is shrinkage",
    "relative_reconstruction_bias": "E‖x̂‖²/E[x·x̂]; 1 is unbiased",
    "normalized_mse": "error per dimension, in each token's own variance",
    "ce_clean": "the model's loss as it is (nats per token)",
    "ce_spliced": "its loss with x̂ in place of x",
    "ce_zero": "its loss with 0 in place of x",
    "ce_mean": "its loss with the mean in place of x",
    "ce_increase": "what splicing in x̂ costs",
    "kl": "how far the predictions move",
    "loss_recovered_zero": "of what zeroing costs, the share x̂ recovers (flatters)",
    "loss_recovered_mean": "of what mean ablation costs, the share x̂ recovers",
}
# Twice the standard deviation over the training seeds 0, 1 and 2 of smollm2-135m-layer15-topk-k32.
_SMALLEST = {
    "explained_variance": 3.2e-4,
    "explained_variance_all": 7.3e-3,
    "cosine": 5.2e-5,
    "normalized_mse": 1.2e-4,
    "ce_spliced": 3.2e-3,
    "ce_increase": 3.2e-3,
    "kl": 1.1e-3,
    "loss_recovered_zero": 4.5e-4,
    "loss_recovered_mean": 5.8e-4,
}


class Fidelity(Metric):
    """explained_variance, mse, cosine, l2_ratio, bias, normalized_mse, cross-entropies, loss_recovered, KL.

    Scores are over scored tokens, explained_variance_all over every token that is not special. Cross-entropies are of the
    predictions made from scored positions that have a next token in the context. Units: contexts.
    """

    name = "fidelity"
    version = 1
    needs = frozenset({"x", "reconstruction", "token_losses"})
    optional = frozenset({"token_losses"})
    headlines = ("explained_variance", "loss_recovered_zero", "loss_recovered_mean", "ce_increase", "kl")
    about = _ABOUT
    smallest = _SMALLEST

    def __init__(self, sae: SAE) -> None:
        self.rows = Rows()
        # Σ(x − c) over scored and over all tokens, with c the calibration mean: turns Σ‖x − c‖² into Σ‖x − μ‖².
        self.shift = np.zeros(sae.d_out)
        self.shift_all = np.zeros(sae.d_out)

    def update(self, batch: Batch) -> None:
        """Add each context's sums of errors, norms and losses."""
        x, xh, scored, per = batch.x, batch.reconstruction, batch.scored, batch.per_context
        normal = ~batch.special
        assert batch.calibration_mean is not None
        from_c = x - batch.calibration_mean
        error, spread = _square(x - xh), _square(from_c)
        norm, norm_hat = x.double().norm(dim=-1), xh.double().norm(dim=-1)
        dot = (x * xh).sum(-1, dtype=torch.float64)
        # A zero vector has no direction and no scale: its cosine and ratio count as 0.
        cosine = dot / (norm * norm_hat).clamp_min(1e-300)
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
            l2_ratio=per(torch.where(norm > 0, norm_hat / norm.clamp_min(1e-300), 0.0)),
            dot=per(dot),
            square_hat=per(norm_hat.square()),
            normalized_mse=per(_normalized_error(x, xh)),
            **(_losses(batch) if batch.has("token_losses") else {}),
        )

    @property
    def _predicts(self) -> bool:
        """Whether the activations are a language model's, so that there are losses."""
        return "clean" in self.rows.columns

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
        if not self._predicts:
            return u
        u["increase"] = u["spliced"] - u["clean"]
        for ablated in ("zero", "mean"):
            u[f"{ablated}_recovered"] = u[ablated] - u["spliced"]
            u[f"{ablated}_lost"] = u[ablated] - u["clean"]
        return u

    def scores(self, env: Env) -> list[Score]:
        """Ratios of sums over contexts; without a language model, those of activations only."""
        nats = "nats/token"
        variance = "variance of the token"
        scores = [
            _share("explained_variance", "sse", "variance", "tokens", offset=1, scale=-1),
            _share("explained_variance_all", "sse_all", "variance_all", "tokens_all", offset=1, scale=-1),
            _mean("mse", "sse", "tokens", "squared activation", "lower"),
            _mean("cosine", "cosine", "tokens", "cosine", "higher"),
            _mean("l2_ratio", "l2_ratio", "tokens", "ratio"),
            Score.ratio("relative_reconstruction_bias", "square_hat", "dot", unit="ratio", count="tokens"),
            _mean("normalized_mse", "normalized_mse", "tokens", variance, "lower"),
        ]
        if not self._predicts:
            return scores
        return [
            *scores,
            _mean("ce_clean", "clean", "predictions", nats),
            _mean("ce_spliced", "spliced", "predictions", nats, "lower"),
            _mean("ce_zero", "zero", "predictions", nats),
            _mean("ce_mean", "mean", "predictions", nats),
            _mean("ce_increase", "increase", "predictions", nats, "lower"),
            _mean("kl", "kl", "tokens", nats, "lower"),
            _share("loss_recovered_zero", "zero_recovered", "zero_lost", "predictions"),
            _share("loss_recovered_mean", "mean_recovered", "mean_lost", "predictions"),
        ]


def _losses(batch: Batch) -> dict[str, np.ndarray]:
    """The columns that need a language model."""
    losses, per = batch.token_losses, batch.per_context
    at = losses.predicted
    return {
        "predictions": per(torch.ones_like(losses.clean, dtype=torch.float64), at),
        "clean": per(losses.clean, at),
        "spliced": per(losses.spliced, at),
        "zero": per(losses.zero, at),
        "mean": per(losses.mean, at),
        "kl": per(losses.kl),
    }


def _mean(key: str, column: str, per: str, unit: str, direction: Literal["higher", "lower"] | None = None) -> Score:
    """The mean of a column per token or per prediction."""
    return Score.ratio(key, column, per, unit=unit, direction=direction, count=per)


def _share(key: str, num: str, den: str, count: str, offset: float = 0, scale: float = 1) -> Score:
    """A fraction of which more is better."""
    return Score.ratio(key, num, den, offset=offset, scale=scale, unit="fraction", direction="higher", count=count)


def _square(v: torch.Tensor) -> torch.Tensor:
    return v.square().sum(-1, dtype=torch.float64)


def _sum_vectors(v: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Σ over the masked tokens, context by context so that batches do not matter: float64 [d]."""
    masked = torch.where(mask[..., None], v, 0).sum(1, dtype=torch.float64)
    return masked.sum(0).cpu().numpy()


def _normalized_error(x: torch.Tensor, xh: torch.Tensor) -> torch.Tensor:
    """Mean over d of the squared difference, both shifted and scaled by the token's own mean and (unbiased) sd of x.

    A constant token has no scale: its error counts as 0.
    """
    variance = x.double().var(-1)
    return torch.where(variance > 0, (x - xh).double().square().mean(-1) / variance.clamp_min(1e-300), 0.0)


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [Fidelity]
