"""The recipe contract: an architecture, its loss, and its settings (hook `saebench_recipes`).

A recipe is an object that the hook `saebench_recipes` returns. It states its loss in plain torch, as its paper does; the
trainer (`saebench.training.trainer`) does what is common to all: scaling, schedule, clipping, the decoder's norm, counting
dead latents. Everything a recipe sees is in the SAE's own space, where activations have a mean square of 1.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from saebench.arithmetic.dictionary import Dictionary
from saebench.arithmetic.precision import PRODUCTS
from saebench.arithmetic.ranks import all_min, batch_mean
from saebench.errors import UsageError, unknown
from saebench.sae import Activation


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every recipe; a recipe adds its own (k, a coefficient, …) and its own defaults.

    Attributes:
        lr: Adam's learning rate after warm-up.
        beta1, beta2: Adam's decay rates.
        eps: Adam's epsilon (Gao et al. 2024, arXiv 2406.04093, appendix A.3: small, since gradients are).
        warmup: share of all steps over which the rate rises linearly from 0.
        decay: share of all steps, at the end, over which it falls linearly to 0.
        clip: largest global norm of the gradient; 0 never clips.
        dead_after: a latent that has not fired for this many tokens is dead.
        frozen: `decoder` keeps the decoder's random unit rows, `encoder` the encoder's random rows, and trains the rest (biases
            and thresholds too): controls that a trained SAE has to beat (arXiv 2602.14111). None trains both.
        encoder_norm: norm of the encoder's rows before the first step; the decoder's rows have norm 1 and the same directions.
        dtype: of the dense matrix products, bfloat16 or float32; parameters, gradients and moments are float32. None follows
            the processor's units (`saebench.arithmetic.precision`).
    """

    lr: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 6.25e-10
    warmup: float = 0.05
    decay: float = 0.2
    clip: float = 1.0
    dead_after: int = 200_000
    frozen: str | None = None
    encoder_norm: float = 1.0
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{name} is {value}, expected a finite number")
        self.require_positive("lr", "eps", "dead_after", "encoder_norm")
        self.require_below_one("beta1", "beta2", "warmup", "decay")
        if not self.clip >= 0:
            raise UsageError(f"clip is {self.clip}, expected 0 (never clip) or a positive number")

        if self.frozen not in (None, "decoder", "encoder"):
            raise UsageError(f"frozen is {self.frozen!r}, expected decoder or encoder (leave it out to train both)")
        if self.dtype not in (None, *PRODUCTS):
            raise UsageError(f"dtype is {self.dtype!r}, expected {' or '.join(PRODUCTS)}")

    def require_positive(self, *names: str) -> None:
        """Raise UsageError unless these settings are above 0."""
        for name in names:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}, expected a positive number")

    def require_not_negative(self, *names: str) -> None:
        """Raise UsageError unless these settings are 0 or more."""
        for name in names:
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 0 or a positive number")

    def require_below_one(self, *names: str) -> None:
        """Raise UsageError unless these settings are at least 0 and below 1."""
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 0 ≤ {name} < 1")

    def require_shares(self, *names: str) -> None:
        """Raise UsageError unless these settings are from 0 to 1."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 0 ≤ {name} ≤ 1")

    def check(self, d_in: int, width: int) -> None:
        """Raise UsageError where these settings do not fit an SAE of this shape."""
        k, l0 = getattr(self, "k", None), getattr(self, "l0", None)
        if k is not None and not 1 <= k <= width:
            raise UsageError(f"k is {k}, but the SAE has {width} latents: choose 1 ≤ k ≤ {width}")
        if l0 is not None and not l0 <= width:
            raise UsageError(f"l0 is {l0}, but the SAE has {width} latents: choose l0 ≤ {width}")


@dataclass(frozen=True)
class Batch:
    """One step's activations, and the moment in the run.

    Attributes:
        x: [n, d_in] float32, scaled; this process's rows of the global batch.
        variance: Σ‖x − x̄‖²/n over the global batch, a 0-d tensor: the denominator of a normalised loss.
        step, steps: this step, from 0, of how many.
        dead: [width] bool, the latents that have not fired for `dead_after` tokens; None while there is none.
    """

    x: Tensor
    variance: Tensor
    step: int
    steps: int
    dead: Tensor | None = None

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes of a local mean, so that a loss that divides by it, or squares it, is the global one."""
        return batch_mean(value)

    def least(self, values: Tensor) -> Tensor:
        """The smallest positive of all processes' values, 0-d; infinite where there is none."""
        positive = torch.where(values > 0, values, torch.inf)
        return all_min(positive.min() if len(values) else values.new_tensor(torch.inf))

    def ramp(self, share: float) -> float:
        """A factor that rises linearly from 0 to 1 over this share of all steps."""
        return min(1.0, self.step / (share * self.steps)) if share > 0 else 1.0


@dataclass(frozen=True)
class Loss:
    """The result of a recipe's loss.

    Attributes:
        total: 0-d, with gradient; a mean over this process's rows. Gradients are averaged over processes.
        reconstruction: [n, d_in] x̂ as the SAE would give it, without gradient; explained variance is taken from it.
        fired: [width] how many of the rows each latent fired on.
        parts: the terms of the total by name, for the log.
    """

    total: Tensor
    reconstruction: Tensor
    fired: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StepCost:
    """Cost of a step, for `--dry-run`.

    Attributes:
        held: float32 tensors [batch, width] at its fullest, as torch's profiler counts them.
        products: dense products [batch, d_in] × [d_in, width], in the settings' dtype, as torch counts them; what sparse latents
            take besides is about one more.
        elementwise: how long all the rest takes for each pre-activation, in float32 multiply-adds of a product. Timed on a CPU at
            d_in 32, 576 and 2,048, widths 2,304 to 16,384, give or take a factor of two.
    """

    held: float
    products: float
    elementwise: float


class Recipe(ABC):
    """A way to train an SAE: its parameters, its loss, and the trained SAE's activation."""

    name: ClassVar[str]
    architecture: ClassVar[str]
    settings: ClassVar[type[Settings]]
    # Decoder rows keep norm 1, and their gradient loses its radial part. Where they are free, the finished SAE has their
    # norms folded into its latents, which needs an activation without thresholds.
    unit_decoder: ClassVar[bool] = True
    # As relu's; sparse latents take far less.
    cost: ClassVar[StepCost] = StepCost(held=4, products=6, elementwise=1700)

    def parameters(self, settings: Any, d_in: int, width: int) -> dict[str, Tensor]:
        """Trained tensors beside W_enc, W_dec, b_enc and b_dec, by name, at their first values. Default: none."""
        return {}

    def buffers(self, settings: Any, d_in: int, width: int) -> dict[str, Tensor]:
        """Tensors that the loss itself updates (a running threshold), by name. Default: none."""
        return {}

    def rates(self, settings: Any) -> dict[str, float]:
        """The learning rate of some parameters over that of all the others, by their names in the dictionary. Default: none."""
        return {}

    def initialise(self, sae: Dictionary, sample: Tensor, settings: Any) -> None:
        """Set first values that depend on data, from scaled activations [n, d_in], after b_dec is set. Default: nothing."""
        return

    @abstractmethod
    def loss(self, sae: Dictionary, batch: Batch, settings: Any) -> Loss:
        """The loss of one batch."""

    @abstractmethod
    def activation(self, sae: Dictionary, settings: Any, scale: float) -> Activation:
        """The activation function of the finished SAE in the model's own space.

        Args:
            sae: the trained parameters; they read x · scale.
            scale: biases and thresholds of the finished SAE are those of training divided by it, weights are the same.
        """

    def metadata(self, settings: Any, d_in: int, width: int) -> dict[str, Any]:
        """Fields of `saebench.sae.Metadata` that only the recipe knows (declared_l0, group_sizes)."""
        target = getattr(settings, "k", None) or getattr(settings, "l0", None)
        return {} if target is None else {"declared_l0": float(target)}


def make_settings(recipe: Recipe, given: Mapping[str, Any]) -> Any:
    """The recipe's settings with some of them replaced: numbers as they come from a TOML file or a command line.

    Raises:
        UsageError: the recipe has no such setting (names the nearest), or it is of the wrong type or out of range.
    """
    known = {f.name: f for f in dataclasses.fields(recipe.settings)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise unknown(f"setting of recipe {recipe.name}", name, known)
        kind = known[name].type
        if kind in (float, "float") and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, list):
            value = tuple(value)
        wanted = {float: float, int: int, bool: bool, "float": float, "int": int, "bool": bool, str: str}.get(kind)
        if wanted is not None and type(value) is not wanted:
            raise UsageError(
                f"recipe {recipe.name}: {name} is {value!r}, expected {'a whole number' if wanted is int else wanted.__name__}"
            )
        if isinstance(value, int) and value >= 2**63:
            raise UsageError(f"recipe {recipe.name}: {name} is {value}, expected a whole number below 2^63")
        values[name] = value
    return recipe.settings(**values)
