"""The part of a reconstruction that a single latent writes, in the model's own space."""

import torch
from torch import Tensor

from saebench.sae import SAE


@torch.no_grad()
def contribution(sae: SAE, x_read: Tensor, latent: int) -> Tensor:
    """[n, d_out] the part of the reconstruction that one latent writes, in the model's own space; exactly 0 where z is 0.

    Args:
        x_read: [n, d_in] activations that the SAE reads.
    """
    z = sae.encode(x_read).dense()[:, latent]
    return _restored(sae, x_read, z[:, None] * sae.W_dec[latent])


@torch.no_grad()
def token_scale(sae: SAE, x_read: Tensor) -> Tensor:
    """[...] the scale that the SAE's output transform applies at each token; 1 unless the SAE normalises tokens."""
    unit = torch.nn.functional.normalize(torch.ones(sae.d_out, dtype=sae.W_dec.dtype, device=x_read.device), dim=0)
    rows = x_read.reshape(-1, x_read.shape[-1])
    scale: Tensor = _restored(sae, rows, unit.expand(len(rows), -1)).norm(dim=-1)
    return scale.reshape(x_read.shape[:-1])


def _restored(sae: SAE, x_read: Tensor, u: Tensor) -> Tensor:
    """A term of the reconstruction, from the SAE's own space to the model's: the linear part of the inverse transform."""
    _, stats = sae.transform.forward(x_read.to(sae.W_dec.dtype))
    return sae.transform.inverse(u, stats) - sae.transform.inverse(torch.zeros_like(u), stats)
