"""ReLU with an L1 penalty: Anthropic, "Update on how we train SAEs" (Circuits Updates, April 2024)."""

from dataclasses import dataclass

from torch import Tensor

from saebench import hookimpl
from saebench.arithmetic.dictionary import Dictionary
from saebench.recipe import Batch, Loss, Recipe, Settings
from saebench.sae import ReLU as ReLUActivation
from saebench.training.sparsity import penalty, penalty_buffer, require_target


@dataclass(frozen=True, kw_only=True)
class ReLUSettings(Settings):
    """
    Attributes:
        l1: λ, the weight of the penalty; its first value where l0 is set.
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


class ReLU(Recipe):
    """ReLU: an L1 penalty weighted by the decoder's norms, which are free (Anthropic, April 2024)."""

    name = "relu"
    architecture = "standard"
    settings = ReLUSettings
    unit_decoder = False

    def buffers(self, settings: ReLUSettings, d_in: int, width: int) -> dict[str, Tensor]:
        return penalty_buffer(settings.l1)

    def loss(self, sae: Dictionary, batch: Batch, settings: ReLUSettings) -> Loss:
        """L = ‖x − x̂‖² + λ·Σᵢ fᵢ·‖W_dec,i‖"""
        f = sae.pre_activations(batch.x).relu()
        x_hat = sae.decode_dense(f)
        mse = (batch.x - x_hat).pow(2).sum(1).mean()
        l1 = f.mean(0) @ sae.W_dec.norm(dim=1)
        active = f.detach() > 0
        weight = penalty(sae, batch, active.sum(1), settings.l0)
        total = mse + weight * batch.ramp(settings.l1_warmup) * l1
        parts = {"mse": mse.detach(), "l1": l1.detach(), "penalty": weight}
        return Loss(total, x_hat.detach(), active.sum(0).float(), parts)

    def activation(self, sae: Dictionary, settings: ReLUSettings, scale: float) -> ReLUActivation:
        return ReLUActivation()


@hookimpl
def saebench_recipes() -> list[Recipe]:
    return [ReLU()]
