"""ReLU with an L1 penalty: Anthropic, "Update on how we train SAEs" (Circuits Updates, April 2024)."""

from dataclasses import dataclass

from saebench import hookimpl
from saebench.arithmetic.dictionary import Dictionary
from saebench.recipe import Batch, Loss, Recipe, Settings
from saebench.sae import ReLU as ReLUActivation


@dataclass(frozen=True, kw_only=True)
class ReLUSettings(Settings):
    """
    Attributes:
        l1: λ, the weight of the penalty.
        l1_warmup: share of all steps over which it rises linearly from 0.
    """

    l1: float = 1.0
    l1_warmup: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_not_negative("l1")
        self.require_shares("l1_warmup")


class ReLU(Recipe):
    """ReLU: an L1 penalty weighted by the decoder's norms, which are free (Anthropic, April 2024)."""

    name = "relu"
    architecture = "standard"
    settings = ReLUSettings
    unit_decoder = False

    def loss(self, sae: Dictionary, batch: Batch, settings: ReLUSettings) -> Loss:
        """L = ‖x − x̂‖² + λ·Σᵢ fᵢ·‖W_dec,i‖"""
        f = sae.pre_activations(batch.x).relu()
        x_hat = sae.decode_dense(f)
        mse = (batch.x - x_hat).pow(2).sum(1).mean()
        l1 = f.mean(0) @ sae.W_dec.norm(dim=1)
        total = mse + settings.l1 * batch.ramp(settings.l1_warmup) * l1
        fired = (f.detach() > 0).sum(0).float()
        return Loss(total, x_hat.detach(), fired, {"mse": mse.detach(), "l1": l1.detach()})

    def activation(self, sae: Dictionary, settings: ReLUSettings, scale: float) -> ReLUActivation:
        return ReLUActivation()


@hookimpl
def saebench_recipes() -> list[Recipe]:
    return [ReLU()]
