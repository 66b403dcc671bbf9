"""One pass over text: how often and how strongly each latent fires, windows around its peaks, and correlations."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from saebench.corpus import Contexts
from saebench.lens import Lens
from saebench.sae import SAE

# Tokens of a window.
WINDOW = 25
# Windows kept for each latent: the strongest peaks, and a random sample of peaks, at most one peak a context.
STRONGEST, SAMPLED = 5, 40
# Edges of the histograms, shared by all latents, half a power of two apart; the outer bins are open.
EDGES = 2.0 ** (np.arange(-20, 29) / 2)
# Activations held at once.
_ELEMENTS = 2**25


@dataclass
class Reservoir:
    """For each latent, the `size` rows of smallest key.

    Attributes:
        rows: columns of equal length, sorted by latent and key: `latent`, `key`, `context`, `start`, `peak` and `z` [n, WINDOW].
    """

    size: int
    rows: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, **new: np.ndarray) -> None:
        rows = {name: np.concatenate([self.rows[name], new[name]]) for name in new} if self.rows else new
        order = np.lexsort((rows["key"], rows["latent"]))
        latent = rows["latent"][order]
        kept = order[np.arange(len(order)) - np.searchsorted(latent, latent) < self.size]
        self.rows = {name: column[kept] for name, column in rows.items()}

    def of(self, latent: int) -> dict[str, np.ndarray]:
        """The rows of one latent, smallest key first."""
        begin, end = np.searchsorted(self.rows["latent"], [latent, latent + 1])
        return {name: column[begin:end] for name, column in self.rows.items()}


@dataclass
class Collected:
    """What the pass found, over the scored tokens: all but special tokens and padding.

    Attributes:
        latents: [n] the latents that were asked for.
        tokens: scored tokens.
        counts: [n] tokens on which each fires (z > 0).
        histogram: [n, bins] their activations by EDGES; each row sums to `counts`.
        correlation: [n, n] Pearson, over the scored tokens; 0 for a latent that never fires.
        strongest, sampled: windows by position in `latents`.
    """

    latents: np.ndarray
    tokens: int
    counts: np.ndarray
    histogram: np.ndarray
    correlation: np.ndarray
    strongest: Reservoir
    sampled: Reservoir


def collect(lens: Lens, sae: SAE, text: Contexts, latents: np.ndarray) -> Collected:
    """Run the model once over the text.

    Args:
        latents: [n] which latents; memory grows with n² (correlations) and n (windows).
    """
    n, chosen = len(latents), torch.from_numpy(latents).to(lens.device)
    found = Collected(latents, 0, np.zeros(n, np.int64), np.zeros((n, len(EDGES) - 1), np.int64), np.zeros((n, n)),
                      Reservoir(STRONGEST), Reservoir(SAMPLED))  # fmt: skip
    sums, products = torch.zeros(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    step = max(1, _ELEMENTS // (sae.d_sae * text.length))
    for begin in range(0, len(text), step):
        part = text.take(np.arange(begin, min(begin + step, len(text))))
        x = lens.capture(torch.from_numpy(part.token_ids)).x_read
        z = sae.encode(x).dense()[..., chosen].clamp_min(0).float()
        scored = torch.from_numpy(~part.special).to(z.device)
        z *= scored[..., None]
        flat = z[scored].cpu()
        found.tokens += len(flat)
        found.counts += (flat > 0).sum(0).numpy()
        _count(found.histogram, flat)
        sums += flat.sum(0, dtype=torch.float64)
        products += (flat.T @ flat).double()
        _windows(found, z, begin)
    found.correlation = _pearson(sums, products, found.tokens)
    return found


def _count(histogram: np.ndarray, flat: Tensor) -> None:
    """Add activations [tokens, n] to the histograms."""
    _, latent = (flat > 0).nonzero(as_tuple=True)
    bins = np.clip(np.searchsorted(EDGES, flat[flat > 0].numpy(), "right") - 1, 0, len(EDGES) - 2)
    np.add.at(histogram, (latent.numpy(), bins), 1)


def _windows(found: Collected, z: Tensor, first: int) -> None:
    """Offer the peak of each latent in each context, z [contexts, T, n], to the reservoirs."""
    length = z.shape[1]
    peak, position = z.max(1)
    context, latent = (peak > 0).nonzero(as_tuple=True)
    if not len(context):
        return
    width = min(WINDOW, length)
    start = (position[context, latent] - width // 2).clamp(0, length - width)
    around = z[context[:, None], start[:, None] + torch.arange(width, device=z.device), latent[:, None]]
    columns = {
        "latent": latent.cpu().numpy(), "context": context.cpu().numpy() + first, "start": start.cpu().numpy(),
        "peak": peak[context, latent].cpu().numpy(), "z": around.cpu().numpy(),
    }  # fmt: skip
    found.strongest.add(key=-columns["peak"].astype(np.float64), **columns)
    found.sampled.add(key=_hashed(found.latents[columns["latent"]], columns["context"]), **columns)


def _hashed(latent: np.ndarray, context: np.ndarray) -> np.ndarray:
    """A fixed pseudo-random float for each pair (splitmix64), so that the sample does not depend on batches."""
    x = latent.astype(np.uint64) << np.uint64(32) | context.astype(np.uint64)
    x = x + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x.astype(np.float64)


def _pearson(sums: Tensor, products: Tensor, tokens: int) -> np.ndarray:
    mean = sums / max(tokens, 1)
    covariance = products / max(tokens, 1) - mean[:, None] * mean
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    scale = deviation[:, None] * deviation
    return torch.where(scale > 0, covariance / scale.clamp_min(1e-300), torch.zeros_like(scale)).numpy()
