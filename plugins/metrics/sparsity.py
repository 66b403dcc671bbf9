"""Sparsity and use of latents: L0, L1, firing densities, dead latents and how their number falls with more tokens.

A latent fires where z ≠ 0.
"""

import numpy as np
import pandas as pd
import torch
from scipy.special import gammaln

from saebench import SAE, Batch, Env, Metric, Score, hookimpl
from saebench.metric import Rows
from saebench.presentation import Axis, Figure

# Edges of the histogram of log10 firing frequency; latents that never fired are counted by dead_fraction, not here.
EDGES = np.arange(-7.0, 0.5, 0.5)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_ALL = "every latent is counted; over other tokens it would differ, see dead_fraction_curve"
# Captions of the scores.
_ABOUT = {
    "l0": "latents that fire on a token",
    "l0_sd": "its spread over tokens",
    "l1": "Σ|z|·‖decoder row‖ on a token",
    "dead_fraction": "latents that never fired in {n:,} tokens",
    "dense_fraction": "latents that fire on more than a tenth of tokens",
}


class Sparsity(Metric):
    """l0 (mean, sd, quantiles), l1, density histogram, dense_fraction, dead_fraction with its token count and curve.

    Units: contexts. State: one integer per latent for tokens and one for contexts in which it fired, and the exact histogram
    of L0, so it does not grow with the number of tokens.
    """

    name = "sparsity"
    version = 1
    needs = frozenset({"latents"})
    headlines = ("l0", "dead_fraction")
    about = _ABOUT
    figures = (Figure("dead_fraction_curve", "at", "tokens seen"),)
    sparsity = Axis("l0", "latents per token (L0)")

    def __init__(self, sae: SAE) -> None:
        self.rows = Rows()
        self.tokens_fired = np.zeros(sae.d_sae, dtype=np.int64)
        self.contexts_fired = np.zeros(sae.d_sae, dtype=np.int64)
        self.l0_histogram = np.zeros(sae.d_sae + 1, dtype=np.int64)
        self._norms = sae.W_dec.double().norm(dim=1)

    def update(self, batch: Batch) -> None:
        """Add each context's counts of firing latents."""
        shape, scored = batch.scored.shape, batch.scored
        latents = batch.latents.select(scored)
        d_sae = len(self.tokens_fired)
        l0 = torch.zeros(shape, dtype=torch.float64, device=scored.device)
        l0[scored] = latents.counts().double()
        weighted = latents.values.double().abs() * self._norms[latents.indices]
        l1 = torch.zeros(int(scored.sum()), dtype=torch.float64, device=scored.device)
        l1.index_add_(0, latents.rows(), weighted)
        l1_full = torch.zeros_like(l0)
        l1_full[scored] = l1
        self.rows.add(
            batch,
            tokens=batch.per_context(torch.ones_like(l0)),
            l0=batch.per_context(l0),
            l1=batch.per_context(l1_full),
        )
        self.tokens_fired += np.bincount(latents.indices.cpu().numpy(), minlength=d_sae)
        # (context, latent) pairs with a firing in this batch. Contexts are never split, so the pairs add up over batches.
        context_of_row = scored.nonzero()[:, 0]
        pairs = torch.unique(context_of_row[latents.rows()] * d_sae + latents.indices)
        self.contexts_fired += np.bincount((pairs % d_sae).cpu().numpy(), minlength=d_sae)
        self.l0_histogram += np.bincount(latents.counts().cpu().numpy(), minlength=d_sae + 1)

    def merge(self, other: "Sparsity") -> None:
        self.rows.merge(other.rows)
        self.tokens_fired = self.tokens_fired + other.tokens_fired
        self.contexts_fired = self.contexts_fired + other.contexts_fired
        self.l0_histogram = self.l0_histogram + other.l0_histogram

    def units(self) -> pd.DataFrame:
        """One row per context."""
        return self.rows.frame()

    def scores(self, env: Env) -> list[Score]:
        """Means, quantiles and the curve of dead latents; see `Metric.scores`."""
        tokens = int(self.l0_histogram.sum())
        d_sae = len(self.tokens_fired)
        density = self.tokens_fired / tokens

        def plain(key: str, value: float, n: int = d_sae, why: str = _ALL, **more: object) -> Score:
            return Score.plain(key, float(value), n=n, no_interval=why, **more)  # type: ignore[arg-type]

        scores = [
            Score.ratio("l0", "l0", "tokens", unit="latents/token", count="tokens"),
            Score.ratio("l1", "l1", "tokens", unit="activation", count="tokens"),
            plain("l0_sd", self._l0_sd(), tokens, "a standard deviation is not a ratio of sums", unit="latents/token"),
        ]
        for q in QUANTILES:
            scores.append(plain("l0_quantile", self._l0_quantile(q), tokens, "a quantile is not a ratio of sums",
                                unit="latents/token", at=q))  # fmt: skip
        scores.append(
            plain("dead_fraction", float(np.mean(self.tokens_fired == 0)), tokens, unit="fraction", direction="lower")
        )
        scores.append(plain("dense_fraction", float(np.mean(density > 0.1)), unit="fraction", direction="lower"))
        for seen, dead in self._dead_curve(tokens):
            scores.append(plain("dead_fraction_curve", dead, round(seen), unit="fraction", at=seen))
        counts, _ = np.histogram(np.log10(density[density > 0]), EDGES)
        for edge, count in zip(EDGES, counts, strict=False):
            scores.append(plain("density_histogram", count / d_sae, unit="fraction", at=float(edge)))
        return scores

    def _l0_sd(self) -> float:
        values = np.arange(len(self.l0_histogram))
        return float(np.sqrt(np.average((values - self._l0_mean()) ** 2, weights=self.l0_histogram)))

    def _l0_mean(self) -> float:
        return float(np.average(np.arange(len(self.l0_histogram)), weights=self.l0_histogram))

    def _l0_quantile(self, q: float) -> int:
        """The smallest L0 that at least a share q of tokens does not exceed."""
        cumulative = np.cumsum(self.l0_histogram)
        return int(np.searchsorted(cumulative, q * cumulative[-1] - 1e-9))

    def _dead_curve(self, tokens: int) -> list[tuple[float, float]]:
        """(tokens, expected dead fraction) had only m = 1, 2, 4, … of the C contexts been seen (rarefaction, Hurlbert 1971).

        A latent that fired in c contexts is missed by m random ones with probability C(C − c, m)/C(C, m).
        """
        n_contexts = len(self.rows.frame())
        sizes = sorted({min(2**i, n_contexts) for i in range(n_contexts.bit_length() + 1)})
        silent = (n_contexts - self.contexts_fired).astype(float)
        curve = []
        for m in sizes:
            possible = silent >= m
            log_missed = _log_choose(silent[possible], m) - _log_choose(np.array(float(n_contexts)), m)
            curve.append((tokens * m / n_contexts, float(np.exp(log_missed).sum() / len(silent))))
        return curve


def _log_choose(n: np.ndarray, k: int) -> np.ndarray:
    out: np.ndarray = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return out


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [Sparsity]
