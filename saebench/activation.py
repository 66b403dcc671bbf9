"""Activation functions: from pre-activations [n, d_sae] to sparse latents."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from saebench.latents import Latents


class Activation(Protocol):
    """Map from pre-activations [n, d_sae] to Latents; a dataclass whose fields are the parameters read from a checkpoint."""

    def __call__(self, pre: Tensor) -> Latents: ...


@dataclass(frozen=True)
class ReLU:
    """z = max(pre, 0)."""

    def __call__(self, pre: Tensor) -> Latents:
        return Latents.from_dense(pre.relu())


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices [n, k] of each row's k largest scores, in no particular order."""
    values, indices = scores.topk(k, dim=-1, sorted=False)
    return values, indices


@dataclass(frozen=True)
class TopK:
    """z = ReLU of the k largest pre-activations of each token, 0 elsewhere (Gao et al. 2024, arXiv 2406.04093, eq. 2)."""

    k: int

    def __call__(self, pre: Tensor) -> Latents:
        values, indices = top_k(pre, self.k)
        return Latents.from_topk(values.relu(), indices, pre.shape[-1])


@dataclass(frozen=True)
class SignedTopK:
    """z = the k largest pre-activations of each token, negative ones too, 0 elsewhere."""

    k: int

    def __call__(self, pre: Tensor) -> Latents:
        values, indices = top_k(pre, self.k)
        return Latents.from_topk(values, indices, pre.shape[-1])


@dataclass(frozen=True)
class AbsTopK:
    """z = the k pre-activations of each token with the largest magnitudes, signs kept, 0 elsewhere (arXiv 2510.00404)."""

    k: int

    def __call__(self, pre: Tensor) -> Latents:
        _, indices = top_k(pre.abs(), self.k)
        return Latents.from_topk(pre.gather(-1, indices), indices, pre.shape[-1])


@dataclass(frozen=True)
class NormTopK:
    """z = ReLU of the pre-activations whose product with `norm` is among the token's k largest (Llamascopium).

    Attributes:
        k: latents per token.
        norm: [d_sae] the decoder rows' norms; they affect the selection only, not the value.
    """

    k: int
    norm: Tensor

    def __call__(self, pre: Tensor) -> Latents:
        values, indices = top_k(pre * self.norm, self.k)
        chosen = pre.gather(-1, indices)
        return Latents.from_topk(torch.where(values > 0, chosen, 0.0), indices, pre.shape[-1])


@dataclass(frozen=True)
class Identity:
    """z = pre: a dense code, as OpenAI's format allows."""

    def __call__(self, pre: Tensor) -> Latents:
        return Latents.from_dense(pre)


@dataclass(frozen=True)
class JumpReLU:
    """z = ReLU(pre) where pre > threshold, else 0 (Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 2).

    Attributes:
        threshold: [d_sae] or a scalar, in the units of pre. BatchTopK at inference is this with one learned threshold.
    """

    threshold: Tensor

    def __call__(self, pre: Tensor) -> Latents:
        return Latents.from_dense(torch.where(pre > self.threshold, pre.relu(), 0.0))


@dataclass(frozen=True)
class Gated:
    """z = ReLU(exp(r_mag)·p + b_mag) where p + b_gate > 0 (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 6).

    p is the encoder's projection without a bias: the SAE's own b_enc is zero. All fields are [d_sae].
    """

    r_mag: Tensor
    b_gate: Tensor
    b_mag: Tensor

    def __call__(self, pre: Tensor) -> Latents:
        magnitude = (pre * self.r_mag.exp() + self.b_mag).relu()
        return Latents.from_dense(torch.where(pre + self.b_gate > 0, magnitude, 0.0))


@dataclass(frozen=True)
class GroupMax:
    """z = ReLU of the largest pre-activation in each of k equal, consecutive groups of latents (EleutherAI sparsify)."""

    k: int

    def __call__(self, pre: Tensor) -> Latents:
        groups = pre.relu().unflatten(-1, (self.k, -1))
        values, indices = groups.max(dim=-1)
        start = torch.arange(self.k, device=pre.device) * groups.shape[-1]
        return Latents.from_topk(values, indices + start, pre.shape[-1])
