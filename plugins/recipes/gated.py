"""Gated SAEs: Rajamanoharan et al. 2024, arXiv 2404.16014, section 3.2."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saebench import hookimpl
from saebench.arithmetic.dictionary import Dictionary
from saebench.recipe import Batch, Loss, Recipe, Settings, StepCost
from saebench.sae import Gated as GatedActivation
from saebench.training.sparsity import penalty, penalty_buffer, require_target


@dataclass(frozen=True, kw_only=True)
class GatedSettings(Settings):
    """
    Attributes:
        l1: λ, the weight of the penalty on the gate; its first value where l0 is set.
        l0: the latents per token to reach by changing λ; None keeps λ, and L0 follows from it.
        l1_warmup: share of all steps over which it rises linearly from 0.
    """

    l1: float = 1.0
    l0: float | None = None
    l1_warmup: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require_target(self)
        self.require_shares("l1_warmup")


class Gated(Recipe):
    """Gated: which latents fire is decided apart from how strongly, so that the penalty shrinks no activation."""

    name = "gated"
    architecture = "gated"
    settings = GatedSettings
    cost = StepCost(held=7, products=8, elementwise=5800)

    def parameters(self, settings: Any, d_in: int, width: int) -> dict[str, Tensor]:
        return {name: torch.zeros(width) for name in ("r_mag", "b_gate", "b_mag")}

    def buffers(self, settings: GatedSettings, d_in: int, width: int) -> dict[str, Tensor]:
        return penalty_buffer(settings.l1)

    def loss(self, sae: Dictionary, batch: Batch, settings: GatedSettings) -> Loss:
        """L = ‖x − x̂‖² + λ‖ReLU(π)‖₁ + ‖x − x̂_frozen(ReLU(π))‖² (the paper's eq. 8), the decoder frozen in the last term."""
        p = sae.pre_activations(batch.x)  # its bias is common to both paths, which have their own besides
        gate = (p + sae.extra["b_gate"]).relu()
        magnitude = (p * sae.extra["r_mag"].exp() + sae.extra["b_mag"]).relu()
        f = torch.where(gate > 0, magnitude, 0)
        x_hat = sae.decode_dense(f)
        mse = (batch.x - x_hat).pow(2).sum(1).mean()
        l1 = gate.sum(1).mean()
        frozen = (batch.x - sae.decode_dense(gate, frozen=True)).pow(2).sum(1).mean()
        active = f.detach() > 0
        weight = penalty(sae, batch, active.sum(1), settings.l0)
        total = mse + weight * batch.ramp(settings.l1_warmup) * l1 + frozen
        parts = {"mse": mse.detach(), "l1": l1.detach(), "frozen": frozen.detach(), "penalty": weight}
        return Loss(total, x_hat.detach(), active.sum(0).float(), parts)

    def activation(self, sae: Dictionary, settings: GatedSettings, scale: float) -> GatedActivation:
        r_mag, b_gate, b_mag = (sae.extra[name].detach().cpu().clone() for name in ("r_mag", "b_gate", "b_mag"))
        return GatedActivation(r_mag, b_gate / scale, b_mag / scale)


@hookimpl
def saebench_recipes() -> list[Recipe]:
    return [Gated()]
