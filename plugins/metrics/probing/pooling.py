"""From tokens to documents: the mean and the maximum over a document's scored tokens."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from saebench.sae import Latents

POOLS = ("mean", "max")


def pool_dense(x: Tensor, scored: Tensor) -> dict[str, np.ndarray]:
    """{pool: [B, d] float32} of x [B, T, d]; 0 for a document without a scored token."""
    n = scored.sum(1, keepdim=True)
    mask = scored[..., None]
    mean = torch.where(mask, x, 0).sum(1, dtype=torch.float64) / n.clamp_min(1)
    top = torch.where(mask, x, -torch.inf).amax(1)
    top = torch.where(n > 0, top, 0)
    return {"mean": mean.float().cpu().numpy(), "max": top.float().cpu().numpy()}


def pool_latents(latents: Latents, scored: Tensor) -> dict[str, np.ndarray]:
    """Latents of the scored tokens, pooled, as rows of a sparse matrix.

    A latent is 0 at a token where it does not fire, so the maximum of one that is only ever negative (some activations are
    signed) is 0 unless it fires at every token.

    Args:
        latents: one row per scored token, in the order of `scored`.
        scored: [B, T] bool.

    Returns:
        `nnz` [B] int64, how many latents fire in each document; `index` int64, `mean` and `max` float32, one after the other.
    """
    n_docs, d_sae = len(scored), latents.shape[-1]
    tokens = scored.sum(1)
    document = scored.nonzero()[:, 0]
    pair, place = torch.unique(document[latents.rows()] * d_sae + latents.indices, return_inverse=True)
    owner = pair // d_sae
    sums = torch.zeros(len(pair), dtype=torch.float64, device=scored.device).index_add_(
        0, place, latents.values.double()
    )
    top = torch.full((len(pair),), -torch.inf, device=scored.device).scatter_reduce_(
        0, place, latents.values.float(), "amax"
    )
    fired = torch.zeros(len(pair), dtype=torch.int64, device=scored.device).index_add_(0, place, torch.ones_like(place))
    top = torch.where(fired < tokens[owner], top.clamp_min(0), top)
    return {
        "nnz": torch.zeros(n_docs, dtype=torch.int64, device=scored.device)
        .index_add_(0, owner, torch.ones_like(owner))
        .cpu()
        .numpy(),
        "index": (pair % d_sae).cpu().numpy(),
        "mean": (sums / tokens[owner]).float().cpu().numpy(),
        "max": top.cpu().numpy(),
    }


def sparse_rows(parts: Iterable[dict[str, Any]], pool: str, width: int) -> csr_matrix:
    """[N, width] float32, the pooled latents of all parts (as `pool_latents` gives them), in their order."""
    parts = list(parts)
    counts = np.concatenate([p["nnz"] for p in parts])
    starts = np.concatenate([[0], np.cumsum(counts)])
    values = np.concatenate([p[pool] for p in parts])
    index = np.concatenate([p["index"] for p in parts])
    return csr_matrix((values, index, starts), shape=(len(counts), width))
