"""The effect of removing one latent's contribution at one token, on the logits of the tokens that follow."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saebench import SAE
from saebench.lens import Activations, Lens, contribution
from saebench.streams import generator

# The most moved tokens whose share of the KL is reported.
_TOP = 10


@dataclass(frozen=True)
class Firing:
    """One token at which a latent fires.

    Attributes:
        token_ids: the context up to the end of the horizon.
        position: of the token.
        context: its number in the task.
    """

    token_ids: list[int]
    position: int
    context: int


def ablate(lens: Lens, sae: SAE, latent: int, firings: list[Firing], horizon: int, seed: int) -> dict[str, list[Any]]:
    """Effects of removing z·d at each firing, and of removing a random direction of equal norm: a list each, by firing.

    Keys: kl, sparsity, top10 (KL of the ten most moved tokens), and the same with `random_` in front. The sparsity is None
    where no logit moves.
    """
    n = len(firings)
    position = torch.tensor([firing.position for firing in firings], device=lens.device)
    random = torch.stack([_direction(sae.d_out, seed, firing) for firing in firings]).to(lens.device)

    def edit(at: Activations) -> Tensor:
        own = at.copy % n
        rows = torch.arange(len(own), device=own.device)
        removed = contribution(sae, at.x_read[rows, position[own]], latent).to(at.x.dtype)
        elsewhere = random[own].to(removed.dtype) * removed.norm(dim=-1, keepdim=True)
        out = at.x.clone()
        out[rows, position[own]] -= torch.where((at.copy >= n)[:, None], elsewhere, removed)
        return out

    at = (position[:, None] + torch.arange(horizon, device=lens.device)).repeat(2, 1)
    forked = lens.fork([f.token_ids for f in firings], edit, source=torch.arange(n).repeat(2), at=at)
    out: dict[str, list[Any]] = {f"{who}{key}": [] for who in ("", "random_") for key in ("kl", "sparsity", "top10")}
    for i, (clean, edited) in enumerate(forked.pairs()):
        who = "random_" if i >= n else ""
        kl, top = divergence(clean, edited)
        out[f"{who}kl"].append(kl)
        out[f"{who}top10"].append(top)
        out[f"{who}sparsity"].append(sparsity(edited.double() - clean.double()))
    return out


def _direction(d: int, seed: int, firing: Firing) -> Tensor:
    """A random unit vector [d] of this token; the same for every SAE."""
    stream = generator(f"effects/random/{firing.context}/{firing.position}", seed)
    return torch.nn.functional.normalize(torch.randn(d, generator=stream, dtype=torch.float64), dim=0)


def sparsity(change: Tensor) -> float | None:
    """(‖D‖₁/‖D‖₂)²/(T·V) of a logit change [T, V] less its median over the vocabulary (Gao et al. 2024, §4.5).

    The effective share of logits that move: 2/π for a Gaussian change, 1/(T·V) where a single logit moves, None where none does.
    """
    d = change - change.median(dim=-1, keepdim=True).values
    square = float(d.square().sum())
    return None if square == 0 else float(d.abs().sum()) ** 2 / square / d.numel()


def divergence(clean: Tensor, edited: Tensor) -> tuple[float, float]:
    """KL(clean ‖ edited) in nats, summed over T positions, and the part of it in each position's ten most moved tokens.

    A token's part is p·log(p/q) − p + q ≥ 0, which sums to the same KL. Logits [T, V].
    """
    log_p, log_q = clean.double().log_softmax(-1), edited.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    parts = (p * (log_p - log_q) - p + q).clamp_min(0)
    return float(parts.sum()), float(parts.topk(min(_TOP, parts.shape[-1]), dim=-1).values.sum())
