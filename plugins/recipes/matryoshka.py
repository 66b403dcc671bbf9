"""Matryoshka SAEs: nested prefixes of the dictionary that each reconstruct alone. Bussmann et al. 2025, arXiv 2503.17547."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from saebench import hookimpl
from saebench.arithmetic.dictionary import Dictionary
from saebench.errors import UsageError
from saebench.recipe import Batch, Loss, Recipe, StepCost
from saebench.sae import JumpReLU
from saebench.training.auxk import auxk_loss

from .batchtopk import BatchTopKSettings, inference, learn_threshold, threshold_buffer


@dataclass(frozen=True, kw_only=True)
class MatryoshkaSettings(BatchTopKSettings):
    """
    Attributes:
        groups: share of the latents that each nested prefix adds; they sum to 1.
    """

    groups: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = isinstance(self.groups, tuple) and all(type(share) in (int, float) for share in self.groups)
        # Not-a-number is no positive share either, and infinity no part of 1.
        if not numbers or not all(share > 0 for share in self.groups) or not abs(sum(self.groups) - 1) <= 1e-6:
            raise UsageError(f"groups is {self.groups!r}, expected positive shares that sum to 1, like [0.25, 0.75]")

    def check(self, d_in: int, width: int) -> None:
        super().check(d_in, width)
        if min(sizes(self, width)) < 1:
            raise UsageError(f"groups {self.groups} leave a prefix of {width} latents empty: choose fewer")


def sizes(settings: MatryoshkaSettings, width: int) -> tuple[int, ...]:
    """How many latents each group has; the last takes the remainder of rounding."""
    edges = [0, *(round(share * width) for share in accumulate(settings.groups[:-1])), width]
    return tuple(b - a for a, b in pairwise(edges))


class Matryoshka(Recipe):
    """Matryoshka BatchTopK: nested dictionaries, each of which must reconstruct on its own."""

    name = "matryoshka"
    architecture = "matryoshka_batchtopk"
    settings = MatryoshkaSettings
    cost = StepCost(held=1, products=2, elementwise=1000)

    def buffers(self, settings: Any, d_in: int, width: int) -> dict[str, Tensor]:
        return threshold_buffer()

    def loss(self, sae: Dictionary, batch: Batch, settings: MatryoshkaSettings) -> Loss:
        """L = mean over prefixes m of ‖x − x̂ₘ‖²/Var(x) + α·AuxK; x̂ₘ = b_dec + the first m groups' part (the paper's eq. 4)."""
        z = sae.batch_top_k(batch.x, settings.k)
        learn_threshold(sae, z, batch, settings.threshold_decay)
        prefixes = sae.decode_prefixes(z, sizes(settings, sae.width))
        mses = [(batch.x - x_hat).pow(2).sum(1).mean() for x_hat in prefixes]
        aux = auxk_loss(sae, batch, (batch.x - prefixes[-1]).detach(), settings.auxk)
        fvu = sum(mses[1:], mses[0]) / len(mses) / batch.variance
        total = fvu + settings.auxk_coefficient * aux
        parts = {"fvu_prefixes": fvu.detach(), "auxk": aux.detach()}
        return Loss(total, prefixes[-1].detach(), z.fired(), parts)

    def activation(self, sae: Dictionary, settings: MatryoshkaSettings, scale: float) -> JumpReLU:
        return inference(sae, scale)

    def metadata(self, settings: MatryoshkaSettings, d_in: int, width: int) -> dict[str, Any]:
        return {"declared_l0": float(settings.k), "group_sizes": sizes(settings, width)}


@hookimpl
def saebench_recipes() -> list[Recipe]:
    return [Matryoshka()]
