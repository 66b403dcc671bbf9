"""Input transforms: from the model's activations to the space that the SAE was trained in, and back."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Transform(Protocol):
    """Map from model space to the SAE's space, and back with the statistics taken from each token."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]: ...

    def inverse(self, u: Tensor, stats: Any) -> Tensor: ...


@dataclass(frozen=True)
class NoTransform:
    """The SAE reads activations as they are."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return x, None

    def inverse(self, u: Tensor, stats: Any) -> Tensor:
        return u


@dataclass(frozen=True)
class LayerNorm:
    """Per token u = (x − mean)/(sd + eps); the inverse is x̂ = û·sd + mean.

    Attributes:
        eps: added to the standard deviation, outside the root.
        unbiased: whether sd divides by d − 1.
        eps_on_output: whether the inverse multiplies by sd + eps instead of sd.
        restores: whether the inverse is applied; False for a transcoder, which writes to another place.
    """

    eps: float = 1e-5
    unbiased: bool = True
    eps_on_output: bool = False
    restores: bool = True

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        mean = x.mean(-1, keepdim=True)
        centred = x - mean
        sd = centred.std(-1, keepdim=True, correction=int(self.unbiased))
        return centred / (sd + self.eps), (mean, sd)

    def inverse(self, u: Tensor, stats: Any) -> Tensor:
        if not self.restores:
            return u
        mean, sd = stats
        restored: Tensor = u * (sd + self.eps if self.eps_on_output else sd) + mean
        return restored


@dataclass(frozen=True)
class TokenScale:
    """Per token u = x·(norm/‖x‖); the inverse divides by the same factor (SAELens "constant_norm_rescale").

    Attributes:
        norm: the norm that every token is scaled to; None means √d.
        restores: whether the inverse is applied; False for a transcoder, which writes to another place.
    """

    norm: float | None = None
    restores: bool = True

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        target = math.sqrt(x.shape[-1]) if self.norm is None else self.norm
        scale = target / x.norm(dim=-1, keepdim=True)
        return x * scale, scale

    def inverse(self, u: Tensor, stats: Any) -> Tensor:
        return u / stats if self.restores else u
