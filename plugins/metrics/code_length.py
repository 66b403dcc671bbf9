"""Code length: how many bits per token the latents cost at a given share of explained variance (minimum description length).

Latents are quantised with a uniform step, coded, and decoded from their quantised values; sweeping the step gives a
rate–distortion curve. The code: a Bernoulli variable per latent for firing, and for the values of a latent that fires a histogram
of its bins, mixed with the histogram of all latents and a universal code for bins that nobody has used. Probabilities come from
half of the documents (the choose split), the code length and the explained variance from the other half.

Source: the idea of MDL-SAEs (arXiv 2410.11179). Decoder norms are folded into the values first, so that no rescaling of a latent
counts.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saebench import SAE, Batch, Env, Metric, SaebenchError, Score, hookimpl

# Quantiser steps, in units of a typical activation's coordinate (its norm over √d): powers of two.
STEPS = [2.0**power for power in range(-7, 8)]
# Explained variance at which the cost is reported.
TARGETS = {"bits_at_75": 0.75, "bits_at_80": 0.80, "bits_at_85": 0.85}
# Weight of the pooled histogram against a latent's own, and of the universal code against the pooled histogram, in counts.
_POOLED, _UNIVERSAL = 1.0, 1.0


class CodeLength(Metric):
    """bits_at_75, bits_at_80, bits_at_85 (per token, at that explained variance), and the curve `bits` over explained variance.

    A target between two steps is interpolated; one that the SAE does not reach is an error, not a number. `gaussian_at_80` is the
    rate–distortion bound of a Gaussian with the activations' covariance (reverse water-filling): coded principal components
    cannot cost less. Units: contexts of the held-out documents.
    """

    name = "code_length"
    version = 1
    needs = frozenset({"x", "x_read", "latents"})
    about: ClassVar[dict[str, str]] = {
        "bits_at_75": "bits per token to explain 75 % of the variance",
        "bits_at_80": "bits per token to explain 80 % of the variance",
        "bits_at_85": "bits per token to explain 85 % of the variance",
        "bits": "bits per token, over explained variance",
        "explained_finest": "explained variance at the finest step, on the held-out documents",
        "gaussian_at_80": "bits per token of a Gaussian code at 80 %, the bound of principal components",
    }
    headlines = ("bits_at_80",)

    def __init__(self, sae: SAE) -> None:
        self._sae = sae
        self._norms = sae.W_dec.norm(dim=1).clamp(min=1e-12)
        self._d_sae = sae.d_sae
        # One entry per batch: its contexts' sums, and its firing latents.
        self.contexts: list[dict[str, Any]] = []
        self.firings: list[dict[str, Any]] = []
        self.sum = torch.zeros(sae.d_out, dtype=torch.float64)
        self.outer = torch.zeros(sae.d_out, sae.d_out, dtype=torch.float64)
        self.unit = 0.0  # of the steps; 0 until the first batch

    def update(self, batch: Batch) -> None:
        """Keep each firing latent's value, and each context's error at every step."""
        scored, x = batch.scored, batch.x
        self.unit = (batch.typical_norm or x.shape[-1] ** 0.5) / x.shape[-1] ** 0.5
        latents = batch.latents.select(scored)
        rows = scored.nonzero()[:, 0]
        value = latents.values * self._norms[latents.indices]
        x_read, target = batch.x_read[scored], x[scored]
        sse = np.zeros((len(batch.context_id), len(STEPS)))
        for column, step in enumerate(self.unit * step for step in STEPS):
            kept = torch.round(value / step) * step / self._norms[latents.indices]
            quantised = type(latents)(kept, latents.indices, latents.offsets, latents.shape)
            error = (self._sae.decode(quantised, x_read) - target).double().square().sum(-1)
            sse[:, column] = torch.zeros(len(sse), dtype=torch.float64).index_add_(0, rows.cpu(), error.cpu()).numpy()
        centred = target.double().cpu()
        self.sum += centred.sum(0)
        self.outer += centred.T @ centred
        tokens = scored.sum(1).cpu().numpy()
        self.contexts.append(
            {"unit_id": np.asarray(batch.context_id), "cluster_id": np.asarray(batch.document_id), "tokens": tokens,
             "sse": sse, "sum": _per_context(target, rows, len(tokens)),
             "square": batch.per_context(x.double().square().sum(-1))}
        )  # fmt: skip
        self.firings.append(
            {"unit_id": np.asarray(batch.context_id)[rows[latents.rows()].cpu().numpy()],
             "latent": latents.indices.cpu().numpy().astype(np.int32), "value": value.cpu().numpy().astype(np.float32)}
        )  # fmt: skip

    def merge(self, other: Self) -> None:
        """Add the contexts of another instance."""
        self.contexts += other.contexts
        self.unit = self.unit or other.unit
        self.firings += other.firings
        self.sum += other.sum
        self.outer += other.outer

    def units(self) -> pd.DataFrame:
        """One row per held-out context: tokens, bits at every step and at the targets."""
        return self._tables().frame

    def scores(self, env: Env) -> list[Score]:
        """Costs at the targets that the SAE reaches, the curve, and the Gaussian bound.

        Raises:
            SaebenchError: all documents are on one side of the split.
        """
        tables = self._tables()
        scores = [
            Score.ratio(key, key, "tokens", unit="bits/token", direction="lower", count="tokens")
            for key in TARGETS
            if key in tables.frame
        ]
        scores.append(
            Score.ratio("explained_finest", "sse", "variance", offset=1, scale=-1, unit="fraction", count="tokens")
        )
        scores += [
            Score.ratio("bits", f"bits{j}", "tokens", unit="bits/token", count="tokens", at=round(explained, 6))
            for j, explained in enumerate(tables.explained)
            if explained > 0
        ]
        bound = gaussian_bits(self._covariance(), TARGETS["bits_at_80"])
        reason, n = "a bound computed from the covariance of all scored tokens", int(tables.frame["tokens"].sum())
        return [*scores, Score.plain("gaussian_at_80", bound, n=n, unit="bits/token", no_interval=reason)]

    def details(self) -> dict[str, Any]:
        """The largest explained variance, and the targets beyond it."""
        tables = self._tables()
        reached = [key for key in TARGETS if key in tables.frame]
        return {
            "explained_variance": max(tables.explained),
            "not_reached": [key for key in TARGETS if key not in reached],
            "unit": self.unit,
        }

    def _covariance(self) -> Tensor:
        n = sum(int(part["tokens"].sum()) for part in self.contexts)
        mean = self.sum / n
        return self.outer / n - mean[:, None] * mean

    def _tables(self) -> "_Tables":
        if not self.contexts:
            raise SaebenchError("no context was seen")
        return _tables(_joined(self.contexts), _joined(self.firings), self._d_sae, self.unit)


@dataclass(frozen=True)
class _Tables:
    """Costs of the held-out contexts.

    Attributes:
        frame: the units.
        explained: explained variance at each step, of the held-out contexts.
    """

    frame: pd.DataFrame
    explained: list[float]


def _tables(contexts: dict[str, np.ndarray], firings: dict[str, np.ndarray], d_sae: int, unit: float) -> _Tables:
    order = np.argsort(contexts["unit_id"], kind="stable")
    contexts = {name: column[order] for name, column in contexts.items()}
    held = held_out(contexts["cluster_id"])
    if held.all() or not held.any():
        raise SaebenchError(
            "the text has one document, and a code is fitted on one half and scored on the other: use more"
        )
    tokens = contexts["tokens"].astype(np.float64)
    place = np.searchsorted(contexts["unit_id"], firings["unit_id"])
    frame = pd.DataFrame({name: contexts[name][held] for name in ("unit_id", "cluster_id")} | {"tokens": tokens[held]})
    mean = contexts["sum"][held].sum(0) / tokens[held].sum()
    variance = contexts["square"][held].sum() - tokens[held].sum() * float(mean @ mean)
    frame["variance"] = contexts["square"][held] - 2 * contexts["sum"][held] @ mean + tokens[held] * float(mean @ mean)
    frame["sse"] = contexts["sse"][held, 0]
    explained = [float(1 - contexts["sse"][held, j].sum() / variance) for j in range(len(STEPS))]
    for j, step in enumerate(unit * step for step in STEPS):
        bits = code_bits(
            np.rint(firings["value"] / step).astype(np.int64), firings["latent"], place, held, tokens, d_sae
        )
        frame[f"bits{j}"] = bits[held]
    for key, target in TARGETS.items():
        if (found := _between(explained, target)) is not None:
            j, weight = found
            frame[key] = weight * frame[f"bits{j}"] + (1 - weight) * frame[f"bits{j + 1}"]
    return _Tables(frame, explained)


def _between(explained: list[float], target: float) -> tuple[int, float] | None:
    """(j, w): step j with weight w and step j + 1 with 1 − w explain the target share; None where no step explains as much."""
    for j in range(len(explained) - 2, -1, -1):
        fine, coarse = explained[j], explained[j + 1]
        if coarse <= target <= fine and fine > coarse:
            return j, (target - coarse) / (fine - coarse)
    return None


def code_bits(
    bins: np.ndarray, latent: np.ndarray, context: np.ndarray, held: np.ndarray, tokens: np.ndarray, d_sae: int
) -> np.ndarray:
    """[contexts] bits of every context under probabilities of the contexts that are not held out.

    Args:
        bins: [firings] quantised values; 0 is silent.
        latent, context: [firings] which latent, in which context.
        held: [contexts] whether a context is held out. tokens: [contexts] its scored tokens.
    """
    fires = bins != 0
    bins, latent, context = bins[fires], latent[fires], context[fires]
    chosen = ~held[context]
    seen = tokens[~held].sum()
    # Krichevsky–Trofimov estimate of each latent's firing probability.
    count = np.bincount(latent[chosen], minlength=d_sae)
    p = (count + 0.5) / (seen + 1)
    silent = -np.log2(1 - p)
    bits: np.ndarray = tokens * silent.sum()
    value = -np.log2(_bin_probability(bins, latent, chosen, count))
    np.add.at(bits, context, -np.log2(p)[latent] - silent[latent] + value)
    return bits


def _bin_probability(bins: np.ndarray, latent: np.ndarray, chosen: np.ndarray, count: np.ndarray) -> np.ndarray:
    """[firings] probability of each firing's bin given that its latent fires."""
    size = np.abs(bins).astype(np.float64)
    universal = 0.5 / (size * (size + 1))  # Σ over all bins but 0 is 1
    _, pooled = np.unique(bins, return_inverse=True)
    pooled_count = np.bincount(pooled[chosen], minlength=int(pooled.max(initial=-1)) + 1)[pooled]
    everyone = (pooled_count + _UNIVERSAL * universal) / (chosen.sum() + _UNIVERSAL)
    _, own = np.unique(np.stack([latent.astype(np.int64), bins]), axis=1, return_inverse=True)
    own = own.reshape(-1)
    own_count = np.bincount(own[chosen], minlength=int(own.max(initial=-1)) + 1)[own]
    probability: np.ndarray = (own_count + _POOLED * everyone) / (count[latent] + _POOLED)
    return probability


def gaussian_bits(covariance: Tensor, explained: float) -> float:
    """Bits per token of a Gaussian at a share of explained variance: reverse water-filling (Cover and Thomas, theorem 10.3.3)."""
    variances = torch.linalg.eigvalsh(covariance).clamp(min=0).numpy()
    allowed = (1 - explained) * variances.sum()
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(variances, level).sum() < allowed else (low, level)
    above = variances[variances > high]
    return float(0.5 * np.log2(above / high).sum())


def held_out(documents: np.ndarray) -> np.ndarray:
    """[contexts] bool, which lie on the held-out side: half of the documents, by the order of a hash of their numbers."""
    order = sorted(
        set(documents.tolist()), key=lambda number: hashlib.sha256(f"code_length|{number}".encode()).digest()
    )
    out: np.ndarray = np.isin(documents, order[len(order) // 2 :])
    return out


def _per_context(x: Tensor, rows: Tensor, contexts: int) -> np.ndarray:
    """[contexts, d] sums of the rows of x over their contexts."""
    total = torch.zeros(contexts, x.shape[1], dtype=torch.float64)
    return total.index_add_(0, rows.cpu(), x.double().cpu()).numpy()


def _joined(parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    """The metric `code_length`."""
    return [CodeLength]
