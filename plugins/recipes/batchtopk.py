"""BatchTopK: Bussmann, Leask, Nanda 2024, arXiv 2412.06410, section 3."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saebench import hookimpl
from saebench.arithmetic.dictionary import Dictionary
from saebench.arithmetic.kernels import Codes
from saebench.errors import NonFiniteError
from saebench.recipe import Batch, Loss, Recipe, Settings, StepCost
from saebench.sae import JumpReLU
from saebench.training.auxk import auxk_loss


@dataclass(frozen=True, kw_only=True)
class BatchTopKSettings(Settings):
    """
    Attributes:
        k: latents per token, on average over a batch.
        auxk: how many dead latents reconstruct the error; 0 switches that off.
        auxk_coefficient: its weight in the loss.
        encoder_norm: below 1, because latents that overlap add up: from 1 the first steps only shrink them
            (at 300 steps explained variance 0.811 for 0.803, and fewer dead latents).
        threshold_decay: of the running mean of each batch's smallest kept activation, the threshold at inference.
    """

    k: int = 32
    auxk: int = 256
    auxk_coefficient: float = 1 / 32
    encoder_norm: float = 0.5
    threshold_decay: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_not_negative("auxk", "auxk_coefficient")
        self.require_below_one("threshold_decay")


class BatchTopK(Recipe):
    """BatchTopK: the k·n largest pre-activations of a batch of n tokens; at inference one learned threshold."""

    name = "batchtopk"
    architecture = "batchtopk"
    settings = BatchTopKSettings
    cost = StepCost(held=1, products=2, elementwise=900)

    def buffers(self, settings: Any, d_in: int, width: int) -> dict[str, Tensor]:
        return threshold_buffer()

    def loss(self, sae: Dictionary, batch: Batch, settings: BatchTopKSettings) -> Loss:
        """L = ‖x − x̂‖²/Var(x) + α·‖e − ê‖²/Var(e): the paper's eq. 5, each term over its variance as in Gao et al."""
        z = sae.batch_top_k(batch.x, settings.k)
        learn_threshold(sae, z, batch, settings.threshold_decay)
        x_hat = sae.decode(z)
        error = batch.x - x_hat
        fvu = error.pow(2).sum(1).mean() / batch.variance
        aux = auxk_loss(sae, batch, error.detach(), settings.auxk)
        total = fvu + settings.auxk_coefficient * aux
        return Loss(total, x_hat.detach(), z.fired(), {"fvu": fvu.detach(), "auxk": aux.detach()})

    def activation(self, sae: Dictionary, settings: BatchTopKSettings, scale: float) -> JumpReLU:
        return inference(sae, scale)


def threshold_buffer() -> dict[str, Tensor]:
    """The running threshold; −1 stands for "none seen yet"."""
    return {"threshold": torch.tensor(-1.0)}


@torch.no_grad()
def learn_threshold(sae: Dictionary, z: Codes, batch: Batch, decay: float) -> None:
    """Follow E[min of the activations kept in a batch] (the paper's eq. 4), from the first batch on."""
    least = batch.least(z.values)  # infinite where nothing fired: no evidence of a threshold
    seen = sae.state["threshold"]
    known = torch.isfinite(least)
    seen.copy_(torch.where(known, torch.where(seen < 0, least, decay * seen + (1 - decay) * least), seen))


def inference(sae: Dictionary, scale: float) -> JumpReLU:
    """Latents above the learned threshold; the threshold is the mean of the smallest value that each training batch kept.

    Raises:
        NonFiniteError: no latent ever fired, so there is no threshold.
    """
    if float(sae.state["threshold"]) < 0:
        raise NonFiniteError("no latent fired in training, so there is no threshold for inference")
    return JumpReLU((sae.state["threshold"] / scale).detach().cpu().clone())


@hookimpl
def saebench_recipes() -> list[Recipe]:
    return [BatchTopK()]
