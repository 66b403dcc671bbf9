"""AuxK: dead latents learn to reconstruct the error of the living ones (Gao et al. 2024, arXiv 2406.04093, A.2)."""

import torch
from torch import Tensor

from saebench.arithmetic import kernels
from saebench.arithmetic.dictionary import Dictionary
from saebench.arithmetic.ranks import variance
from saebench.recipe import Batch

# From so many dead latents for each one that takes part, sparse products are faster than a dense one: rows of W_dec are gathered
# from memory, where the dense product reads them once.
_SPARSE_FROM = 16


def auxk_loss(sae: Dictionary, batch: Batch, error: Tensor, k: int) -> Tensor:
    """‖e − ê‖²/‖e − ē‖² with ê = z W_dec of the k largest ReLU pre-activations among the dead latents; 0 while none is dead.

    Every dead latent takes part when they are fewer than k: there is no number of dead latents below which it is off.
    b_dec is not in ê, since e has lost it already.

    Args:
        error: [n, d_in] x − x̂, without gradient.
        k: how many dead latents of each token take part at most; 0 switches the loss off.
    """
    if batch.dead is None or k == 0:
        return error.new_zeros(())
    dead = batch.dead.nonzero()[:, 0]
    made = _sparse(sae, batch.x, dead, k) if len(dead) >= _SPARSE_FROM * k else _dense(sae, batch.x, dead, k)
    left = error - made
    spread = variance(error)
    return left.pow(2).sum(1).mean() / spread.clamp_min(torch.finfo(spread.dtype).tiny)


def _dense(sae: Dictionary, x: Tensor, dead: Tensor, k: int) -> Tensor:
    """ê [n, d_in] by products with all dead latents."""
    z = kernels.linear(x - sae.b_dec, sae.W_enc[dead], sae.b_enc[dead], sae.dtype).relu()
    if len(dead) > k:
        values, indices = z.topk(k, dim=1, sorted=False)
        z = torch.zeros_like(z).scatter(1, indices, values)
    return z @ sae.W_dec[dead]


def _sparse(sae: Dictionary, x: Tensor, dead: Tensor, k: int) -> Tensor:
    """The same by products with the k that are non-zero; only the selection among all dead latents is dense."""
    found = kernels.encode_top_k(x, sae.b_dec, sae.W_enc[dead], sae.b_enc[dead], k, sae.dtype)
    layout = kernels.Layout(dead[found.layout.indices], found.layout.offsets, sae.width)
    return kernels.decode(kernels.Codes(found.values, layout), sae.W_dec, torch.zeros_like(sae.b_dec))
