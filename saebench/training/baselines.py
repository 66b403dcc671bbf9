"""Baselines, fitted in the same pass as trained SAEs: principal components, and an SAE with random weights."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from saebench.errors import UsageError, unknown
from saebench.sae import SAE, Metadata, TopK
from saebench.streams import generator


class Trainable(Protocol):
    """An SAE that the loop can train: a `saebench.training.trainer.Trainer`, or a baseline."""

    def initialise(self, sample: Tensor) -> None: ...

    def step(self, x: Tensor) -> Mapping[str, Any]: ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def sae(self) -> SAE: ...


class PCA:
    """Principal components as an SAE: latents come in pairs, component and its negative, and each token keeps its k largest.

    W_enc = [V, −V], W_dec = W_encᵀ, b_dec = the mean; V are the width/2 leading eigenvectors of the covariance of all
    activations seen, summed in float64. The error is what k orthogonal directions of the token's own choice leave.
    """

    def __init__(self, d_in: int, width: int, k: int, device: str) -> None:
        self.width, self.k = width, k
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(d_in, dtype=torch.float64, device=device)
        self.products = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)

    def initialise(self, sample: Tensor) -> None:
        """The mean of a sample is subtracted before products are summed: sums of large numbers lose what is small."""
        self.centre = sample.double().mean(0)

    def step(self, x: Tensor) -> Mapping[str, Any]:
        """Take in activations [n, d_in]."""
        centred = x.double() - self.centre
        for sums, value in (
            (self.count, torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)),
            (self.total, centred.sum(0)),
            (self.products, centred.T @ centred),
        ):
            if dist.is_initialized():
                dist.all_reduce(value)
            sums += value
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        return {"centre": self.centre, "count": self.count, "total": self.total, "products": self.products}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self.count.device))

    def sae(self) -> SAE:
        """The baseline as an SAE in the model's own space."""
        mean = self.total / self.count
        covariance = self.products / self.count - mean.outer(mean)
        _, vectors = torch.linalg.eigh(covariance)
        leading = vectors.flip(1)[:, : self.width // 2]
        # An eigenvector's sign is the library's whim.
        largest = leading.gather(0, leading.abs().argmax(0, keepdim=True))
        leading = (leading * largest.sign()).float()
        W_enc = torch.cat([leading, -leading], 1)
        return _tied(W_enc, (self.centre + mean).float(), self.k, "pca")


class RandomWeights:
    """Random unit directions, tied; each token keeps its k largest projections. A topk SAE before its first step."""

    def __init__(self, d_in: int, width: int, k: int, device: str, seed: int) -> None:
        stream = generator("train/random", seed)
        self.directions = F.normalize(torch.randn(width, d_in, generator=stream), dim=1).to(device)
        self.k = k

    def initialise(self, sample: Tensor) -> None:
        """b_dec is the mean of a sample."""
        self.b_dec = sample.double().mean(0).float()

    def step(self, x: Tensor) -> Mapping[str, Any]:
        """Nothing is learned."""
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        return {"b_dec": self.b_dec}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.b_dec = state["b_dec"].to(self.directions.device)

    def sae(self) -> SAE:
        return _tied(self.directions.T.contiguous(), self.b_dec, self.k, "random")


def _tied(W_enc: Tensor, b_dec: Tensor, k: int, architecture: str) -> SAE:
    metadata = Metadata(architecture=architecture, declared_l0=float(k))
    zeros = torch.zeros(W_enc.shape[1], device=W_enc.device)
    return SAE(W_enc, W_enc.T.contiguous(), zeros, b_dec, TopK(k), True, metadata=metadata)


BASELINES = ("pca", "random")


def make_baseline(name: str, settings: Mapping[str, Any], d_in: int, width: int, seed: int, device: str) -> Trainable:
    """A baseline by name; its one setting is k.

    Raises:
        UsageError: see `check_baseline`.
    """
    k = check_baseline(name, settings, d_in, width)
    return PCA(d_in, width, k, device) if name == "pca" else RandomWeights(d_in, width, k, device, seed)


def check_baseline(name: str, settings: Mapping[str, Any], d_in: int, width: int) -> int:
    """The k of a baseline.

    Raises:
        UsageError: another setting, or a k or a width that does not fit.
    """
    for key in settings:
        if key != "k":
            raise unknown(f"setting of {name}", key, ["k"])
    k = settings.get("k")
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= width:
        raise UsageError(f"{name} needs a k from 1 to its width, {width}; it is {k}")
    if name == "pca" and (width % 2 or width > 2 * d_in):
        raise UsageError(f"pca has two latents a component: width {width} must be even and at most {2 * d_in}")
    return k
