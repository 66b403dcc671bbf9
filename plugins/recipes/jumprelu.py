"""JumpReLU with straight-through gradients and a target L0: Rajamanoharan et al. 2024, arXiv 2407.14435, appendix F."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saebench import hookimpl
from saebench.arithmetic.dictionary import Dictionary
from saebench.recipe import Batch, Loss, Recipe, Settings, StepCost
from saebench.sae import JumpReLU as JumpReLUActivation


@dataclass(frozen=True, kw_only=True)
class JumpReLUSettings(Settings):
    """
    Attributes:
        k: the L0 to reach.
        sparsity: λ, the weight of (L0/k − 1)².
        bandwidth: ε, the width of the window in which a threshold sees a gradient, over the thresholds' first value.
        threshold_rate: learning rate of the log thresholds over `lr`. At 1 they lag behind the weights, and a short run ends
            with a third too few latents at any λ.
        sparsity_warmup: share of all steps over which λ rises linearly from 0.
    """

    beta1: float = 0.0
    k: int = 32
    sparsity: float = 2.0
    bandwidth: float = 0.5
    threshold_rate: float = 5.0
    sparsity_warmup: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("bandwidth", "threshold_rate")
        self.require_not_negative("sparsity")
        self.require_shares("sparsity_warmup")


class JumpReLU(Recipe):
    """JumpReLU: one threshold per latent, trained through a straight-through estimator towards a target L0."""

    name = "jumprelu"
    architecture = "jumprelu"
    settings = JumpReLUSettings
    cost = StepCost(held=5, products=6, elementwise=3500)

    def parameters(self, settings: JumpReLUSettings, d_in: int, width: int) -> dict[str, Tensor]:
        return {"log_threshold": torch.zeros(width)}

    def buffers(self, settings: Any, d_in: int, width: int) -> dict[str, Tensor]:
        return {"bandwidth": torch.tensor(settings.bandwidth)}

    def rates(self, settings: JumpReLUSettings) -> dict[str, float]:
        return {"extra.log_threshold": settings.threshold_rate}

    def initialise(self, sae: Dictionary, sample: Tensor, settings: JumpReLUSettings) -> None:
        """One threshold for all, at which the untrained SAE has the target L0 already: a short run has no time to find it."""
        pre = sae.pre_activations(sample[: max(1, 2**24 // sae.width)])
        kept = pre.flatten().topk(min(settings.k * len(pre), pre.numel())).values
        first = kept[-1].clamp_min(torch.finfo(pre.dtype).tiny)
        sae.extra["log_threshold"].fill_(first.log())
        sae.state["bandwidth"].copy_(settings.bandwidth * first)

    def loss(self, sae: Dictionary, batch: Batch, settings: JumpReLUSettings) -> Loss:
        """L = ‖x − x̂‖²/Var(x) + λ·(L0/k − 1)² with L0 = Σᵢ H(πᵢ − θᵢ), H the step function (the paper's eq. 9 and 31)."""
        pre = sae.pre_activations(batch.x)
        threshold, bandwidth = sae.extra["log_threshold"].exp(), sae.state["bandwidth"].detach()
        f = jump(pre, threshold, bandwidth)
        x_hat = sae.decode_dense(f)
        fvu = (batch.x - x_hat).pow(2).sum(1).mean() / batch.variance
        l0 = batch.mean(step(pre, threshold, bandwidth).sum(1).mean())
        total = fvu + settings.sparsity * batch.ramp(settings.sparsity_warmup) * (l0 / settings.k - 1) ** 2
        fired = (f.detach() > 0).sum(0).float()
        return Loss(total, x_hat.detach(), fired, {"fvu": fvu.detach()})

    def activation(self, sae: Dictionary, settings: JumpReLUSettings, scale: float) -> JumpReLUActivation:
        return JumpReLUActivation((sae.extra["log_threshold"].exp() / scale).detach().cpu().clone())


class _Jump(torch.autograd.Function):
    """π·H(π − θ): its slope in π is 1 where it fires; in θ it is −(θ/ε)·K((π − θ)/ε), K a box of width 1 (eq. 11)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(pre > threshold, pre, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        to_threshold = -(threshold / ctx.bandwidth) * torch.where(near, grads[0], 0).sum(0)
        return torch.where(pre > threshold, grads[0], 0), to_threshold, None


class _Step(torch.autograd.Function):
    """H(π − θ): no slope in π; in θ it is −(1/ε)·K((π − θ)/ε) (eq. 12)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return None, -torch.where(near, grads[0], 0).sum(0) / ctx.bandwidth, None


def jump(pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
    """JumpReLU of pre [n, width] under thresholds [width], with straight-through gradients."""
    out: Tensor = _Jump.apply(pre, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return out


def step(pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
    """[n, width] 1 where a latent fires, with straight-through gradients to the thresholds."""
    out: Tensor = _Step.apply(pre, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return out


@hookimpl
def saebench_recipes() -> list[Recipe]:
    return [JumpReLU()]
