"""TopK with an auxiliary loss for dead latents: Gao et al. 2024, arXiv 2406.04093, sections 2.3 and A.2."""

from dataclasses import dataclass

from saebench import hookimpl
from saebench.arithmetic.dictionary import Dictionary
from saebench.recipe import Batch, Loss, Recipe, Settings, StepCost
from saebench.sae import TopK as TopKActivation
from saebench.training.auxk import auxk_loss


@dataclass(frozen=True, kw_only=True)
class TopKSettings(Settings):
    """
    Attributes:
        k: latents per token.
        auxk: how many dead latents reconstruct the error; 0 switches that off.
        auxk_coefficient: its weight in the loss.
        encoder_norm: below 1, because latents that overlap add up: from 1 the first steps only shrink them
            (at 300 steps explained variance 0.811 for 0.803, and fewer dead latents).
    """

    k: int = 32
    auxk: int = 256
    auxk_coefficient: float = 1 / 32
    encoder_norm: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_not_negative("auxk", "auxk_coefficient")


class TopK(Recipe):
    """TopK: the k largest pre-activations of each token, and dead latents that reconstruct the error."""

    name = "topk"
    architecture = "topk"
    settings = TopKSettings
    cost = StepCost(held=1, products=2, elementwise=500)

    def loss(self, sae: Dictionary, batch: Batch, settings: TopKSettings) -> Loss:
        """L = ‖x − x̂‖²/Var(x) + α·‖e − ê‖²/Var(e), with e = x − x̂ and ê from the `auxk` best dead latents."""
        z = sae.top_k(batch.x, settings.k)
        x_hat = sae.decode(z)
        error = batch.x - x_hat
        fvu = error.pow(2).sum(1).mean() / batch.variance
        aux = auxk_loss(sae, batch, error.detach(), settings.auxk)
        total = fvu + settings.auxk_coefficient * aux
        return Loss(total, x_hat.detach(), z.fired(), {"fvu": fvu.detach(), "auxk": aux.detach()})

    def activation(self, sae: Dictionary, settings: TopKSettings, scale: float) -> TopKActivation:
        return TopKActivation(settings.k)


@hookimpl
def saebench_recipes() -> list[Recipe]:
    return [TopK()]
