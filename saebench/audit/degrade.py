"""Degraded copies of an SAE: worse by construction, so that a score which cannot tell them apart measures little."""

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from saebench.sae import SAE, GroupMax
from saebench.streams import generator

# Noise added to each decoder row, as a share of the row's norm.
NOISE = (0.02, 0.05, 0.1)
LADDER = tuple(f"noise-{100 * share:g}" for share in NOISE)
_REMOVED = 0.1


def degraded_copies(sae: SAE, seed: int) -> dict[str, SAE]:
    """Copies with 2, 5 and 10 % noise on the decoder's rows, with permuted rows, and without a tenth of the latents.

    Args:
        sae: the original.
        seed: of noise, order and choice.
    """
    copies: dict[str, Callable[[], SAE]] = {
        name: lambda share=share: _noisy(sae, share, seed)  # type: ignore[misc]
        for name, share in zip(LADDER, NOISE, strict=True)
    }
    copies["permuted"] = lambda: _permuted(sae, seed)
    if not isinstance(sae.activation, GroupMax):  # its latents are in groups of equal size
        copies["pruned"] = lambda: _pruned(sae, seed)
    return {name: make() for name, make in copies.items()}


def _noisy(sae: SAE, share: float, seed: int) -> SAE:
    """One draw of directions for all shares, so that the copies form a ladder."""
    drawn = torch.randn(sae.W_dec.shape, generator=generator("audit/noise", seed))
    noise = torch.nn.functional.normalize(drawn, dim=1).to(sae.W_dec) * sae.W_dec.norm(dim=1, keepdim=True)
    return replace(sae, W_dec=sae.W_dec + share * noise)


def _permuted(sae: SAE, seed: int) -> SAE:
    order = torch.randperm(sae.d_sae, generator=generator("audit/permuted", seed))
    return replace(sae, W_dec=sae.W_dec[order].contiguous())


def _pruned(sae: SAE, seed: int) -> SAE:
    order = torch.randperm(sae.d_sae, generator=generator("audit/pruned", seed))
    keep = order[round(_REMOVED * sae.d_sae) :].sort().values

    def own(value: object) -> object:
        return value[keep] if isinstance(value, Tensor) and value.shape == (sae.d_sae,) else value

    activation = sae.activation
    kept = {f.name: own(getattr(activation, f.name)) for f in fields(activation)}  # type: ignore[arg-type]
    return replace(
        sae, W_enc=sae.W_enc[:, keep].contiguous(), W_dec=sae.W_dec[keep].contiguous(), b_enc=sae.b_enc[keep],
        activation=replace(activation, **kept),  # type: ignore[type-var]
    )  # fmt: skip
