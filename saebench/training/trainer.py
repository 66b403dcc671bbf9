"""One SAE's training: scale, step, state. Where activations come from is not known here; several trainers may share them.

    trainer = Trainer(recipe, settings, d_in, width=2304, seed=0, steps=1000)
    trainer.initialise(sample)          # [n, d_in] activations: input scale and b_dec
    for x in batches: figures = trainer.step(x)
    sae = trainer.sae()                 # canonical, in the model's own space

Activations are multiplied by one number so that their mean square is 1, and a recipe never sees another scale; the
finished SAE has it folded in. Under `torch.distributed`, each process steps on its own rows (equally many), and gradients
are averaged by DDP: W processes make the step that one makes on all rows.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from saebench.arithmetic.dictionary import Dictionary
from saebench.arithmetic.precision import product_dtype
from saebench.arithmetic.ranks import all_sum, variance, world
from saebench.errors import NonFiniteError, SaebenchError
from saebench.recipe import Batch, Loss, Recipe
from saebench.sae import SAE, Metadata


class _Objective(nn.Module):
    """A recipe's loss as a module, for DDP to wrap."""

    def __init__(self, sae: Dictionary, recipe: Recipe, settings: Any) -> None:
        super().__init__()
        self.sae, self.recipe, self.settings = sae, recipe, settings

    def forward(self, batch: Batch) -> Loss:
        return self.recipe.loss(self.sae, batch, self.settings)


class Trainer:
    """Trains one SAE, a step at a time.

    Attributes:
        recipe, settings: the loss, and its settings.
        dictionary: the parameters, in the space where activations have mean square 1.
        scale: factor of the activations; None before `initialise`.
        done: steps taken.
        tokens: activations seen, by all processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: Any,
        d_in: int,
        *,
        width: int,
        seed: int,
        steps: int,
        device: str | torch.device = "cpu",
    ) -> None:
        """
        Args:
            settings: an instance of `recipe.settings`.
            width: number of latents.
            steps: how many steps the schedule is made for.

        Raises:
            UsageError: settings that do not fit the shape (k > width).
        """
        settings.check(d_in, width)
        self.recipe, self.settings, self.steps, self.device = recipe, settings, steps, torch.device(device)
        extra = recipe.parameters(settings, d_in, width)
        state = recipe.buffers(settings, d_in, width)
        products = getattr(torch, settings.dtype or product_dtype(str(self.device)))
        self.dictionary = Dictionary(
            d_in, width, seed=seed, dtype=products, encoder_norm=settings.encoder_norm, extra=extra,
            state=state,
        ).to(self.device)  # fmt: skip
        if settings.frozen:
            {"decoder": self.dictionary.W_dec, "encoder": self.dictionary.W_enc}[settings.frozen].requires_grad_(False)
        self.scale: float | None = None
        self.done = 0
        self.tokens = 0
        self._silent = torch.zeros(width, dtype=torch.int64, device=self.device)  # tokens since each latent fired
        self._any_dead = False
        self._optimiser = torch.optim.Adam(
            self._groups(), settings.lr, (settings.beta1, settings.beta2), settings.eps, fused=True
        )
        self._objective: nn.Module = _Objective(self.dictionary, recipe, settings)

    @torch.no_grad()
    def initialise(self, sample: Tensor) -> None:
        """Fix the input scale and set b_dec to the mean, from a sample of activations [n, d_in] (the same on every process).

        Raises:
            NonFiniteError: the sample is not finite, or all zero.
        """
        rows = sample.to(self.device, torch.float32)
        power = float(rows.double().pow(2).mean())
        if not (math.isfinite(power) and power > 0):
            raise NonFiniteError(f"the first activations have a mean square of {power}: no scale can be made of them")
        self.scale = power**-0.5
        self.dictionary.b_dec.copy_(rows.mean(0) * self.scale)
        self.recipe.initialise(self.dictionary, rows * self.scale, self.settings)

    def step(self, x: Tensor) -> dict[str, float]:
        """One step on activations x [batch, d_in], in the model's own space.

        Returns:
            loss and its parts; l0, explained_variance (of this batch), dead_fraction; lr. Of the global batch.

        Raises:
            NonFiniteError: the loss or its gradient is not finite; no parameter was changed.
        """
        if self.scale is None:
            raise SaebenchError("Trainer.initialise comes before the first step")
        if world() > 1 and not isinstance(self._objective, DistributedDataParallel):
            self._objective = DistributedDataParallel(self._objective)
        rows = x.to(self.device, torch.float32) * self.scale
        spread = variance(rows)
        batch = Batch(rows, spread, self.done, self.steps, self._dead())
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._objective(batch)
        total = all_sum(loss.total) / world()
        loss.total.backward()
        lr = self._update(total)
        fired = all_sum(loss.fired)
        n = len(rows) * world()
        self._count(fired, n)
        residual = (rows - loss.reconstruction).pow(2).sum(1).mean()
        means = all_sum(torch.stack([residual, *loss.parts.values()]).float()) / world()
        dead = (self._silent >= self.settings.dead_after).float().mean()
        # One copy to the host for all figures: each waits for a GPU.
        value, l0, unexplained, dead_fraction, *parts = torch.cat(
            [torch.stack([total.float(), fired.sum() / n, means[0] / spread, dead]), means[1:]]
        ).tolist()
        self._any_dead = dead_fraction > 0
        return {
            "loss": value,
            **dict(zip(loss.parts, parts, strict=True)),
            "l0": l0,
            "explained_variance": 1 - unexplained,
            "dead_fraction": dead_fraction,
            "lr": lr,
        }

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters by their learning rate over `lr`."""
        rates = self.recipe.rates(self.settings)
        own = [p for name, p in self.dictionary.named_parameters() if p.requires_grad and name not in rates]
        return [{"params": own, "rate": 1.0}] + [
            {"params": [self.dictionary.get_parameter(name)], "rate": rate} for name, rate in rates.items()
        ]

    def _dead(self) -> Tensor | None:
        return self._silent >= self.settings.dead_after if self._any_dead else None

    def _count(self, fired: Tensor, n: int) -> None:
        self._silent = torch.where(fired > 0, 0, self._silent + n)
        self.done += 1
        self.tokens += n

    @torch.no_grad()
    def _update(self, loss: Tensor) -> float:
        """Check loss and gradient, clip, project, step, renormalise. Returns the learning rate."""
        W = self.dictionary.W_dec
        unit = self.recipe.unit_decoder and W.requires_grad
        if unit:
            # Without its radial part, which would only lengthen a row, so that Adam's moments never hold it.
            assert W.grad is not None
            W.grad.addcmul_(W, (W.grad * W).sum(1, keepdim=True), value=-1)
        norm = nn.utils.clip_grad_norm_(self.dictionary.parameters(), self.settings.clip or math.inf)
        found, length = torch.stack([loss.float(), norm.float()]).tolist()
        if not math.isfinite(found):
            raise NonFiniteError(f"the loss of step {self.done} is {found}")
        if not math.isfinite(length):
            raise NonFiniteError(f"the gradient of step {self.done} is not finite")
        lr: float = self.settings.lr * schedule(self.done, self.steps, self.settings.warmup, self.settings.decay)
        for group in self._optimiser.param_groups:
            group["lr"] = lr * group["rate"]
        self._optimiser.step()
        if unit:
            W.div_(W.norm(dim=1, keepdim=True))
        return lr

    def state_dict(self) -> dict[str, Any]:
        """Everything a later step depends on; tensors and numbers only."""
        return {
            "dictionary": self.dictionary.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "silent": self._silent,
            "scale": self.scale,
            "done": self.done,
            "tokens": self.tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.dictionary.load_state_dict(state["dictionary"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._silent = state["silent"].to(self.device, copy=True)
        self._any_dead = bool((self._silent >= self.settings.dead_after).any())
        self.scale, self.done, self.tokens = state["scale"], state["done"], state["tokens"]

    @torch.no_grad()
    def sae(self) -> SAE:
        """The SAE as it is now, on the CPU, canonical: it reads and writes the model's own space.

        z is positively homogeneous in (x, biases, thresholds), so with these divided by the scale the same weights read
        activations as they are, the decoder keeps its unit rows, and z comes out in units of the model's space.

        Raises:
            NonFiniteError: a parameter is not finite.
        """
        if self.scale is None:
            raise SaebenchError("Trainer.initialise comes before the SAE")
        own, settings = self.dictionary, self.settings
        for name, t in own.state_dict().items():
            if not bool(torch.isfinite(t).all()):
                raise NonFiniteError(f"{name} of the trained SAE is not finite")
        d_in, width = own.W_dec.shape[1], own.width

        def copy(t: Tensor) -> Tensor:
            return t.detach().cpu().clone().contiguous()

        W_enc, W_dec, b_enc = own.W_enc, own.W_dec, own.b_enc
        if not self.recipe.unit_decoder:
            norm = W_dec.norm(dim=1, keepdim=True)
            W_enc, W_dec, b_enc = W_enc * norm, W_dec / norm, b_enc * norm[:, 0]
        frozen = f"_frozen_{settings.frozen}" if settings.frozen else ""
        meta = Metadata(architecture=self.recipe.architecture + frozen, training_tokens=self.tokens)
        return SAE(
            copy(W_enc.T),
            copy(W_dec),
            copy(b_enc / self.scale),
            copy(own.b_dec / self.scale),
            self.recipe.activation(own, settings, self.scale),
            subtracts_b_dec=True,
            metadata=replace(meta, **self.recipe.metadata(settings, d_in, width)),
        )


def schedule(step: int, steps: int, warmup: float, decay: float) -> float:
    """The factor on the learning rate at a step, from 0: rising linearly, constant, falling linearly to (almost) 0."""
    rising, falling = warmup * steps, decay * steps
    up = (step + 1) / rising if rising > 0 else 1.0
    down = (steps - step) / falling if falling > 0 else 1.0
    return max(0.0, min(1.0, up, down))
