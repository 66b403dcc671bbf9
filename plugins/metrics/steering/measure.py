"""Steering experiments: adding a direction at every position, and its effect on the probability of target tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench.lens import Activations, Forked, Lens
from saebench.streams import generator

from .settings import Settings

LATENT, RANDOM, CEILING, REVERSED = "latent", "random", "ceiling", "reversed"
# Weight of the base rate in the smoothed log-odds, in tokens.
_PRIOR = 100.0


@dataclass(frozen=True)
class Steered:
    """A latent with its directions and target sets.

    Attributes:
        latent: its number.
        size: norm of the added vector at f = 1, the 99.9th percentile of ‖z·d‖.
        direction, ceiling: [d] unit vectors: the decoder row, and the difference of means.
        targets, others: token ids of its own target set, and of another latent's.
    """

    latent: int
    size: float
    direction: Tensor
    ceiling: Tensor
    targets: list[int]
    others: list[int]


def target_tokens(own: np.ndarray, every: np.ndarray, most: int) -> list[int]:
    """Tokens with the highest log-odds of following a firing against following any other token.

    The log-odds are smoothed by the base rate and divided by their standard error, since the raw ratio favours tokens seen once
    (Monroe, Colaresi & Quinn 2008, "Fightin' Words", eq. 16 to 22). Only tokens that followed a firing, with positive log-odds.

    Args:
        own: [V] counts after a firing of the latent.
        every: [V] counts after all tokens, those included.
    """
    rest = every - own
    prior = _PRIOR * every / every.sum()
    seen = np.flatnonzero(own)
    odds = [
        np.log((counts + prior)[seen]) - np.log((counts.sum() + _PRIOR - counts - prior)[seen].clip(1e-9))
        for counts in (own, rest)
    ]
    error = np.sqrt(1 / (own + prior)[seen] + 1 / (rest + prior)[seen])
    score = (odds[0] - odds[1]) / error
    order = np.lexsort((seen, -score))
    return [int(seen[i]) for i in order[:most] if score[i] > 0]


def random_direction(d: int, seed: int, latent: int) -> Tensor:
    """A random unit vector [d], the same for every SAE."""
    stream = generator(f"steering/random/{latent}", seed)
    return torch.nn.functional.normalize(torch.randn(d, generator=stream, dtype=torch.float64), dim=0)


def measure(
    lens: Lens, one: Steered, choose: list[list[int]], score: list[list[int]], settings: Settings, seed: int
) -> dict[str, Any]:
    """The largest strength within the KL limit on `choose`, and the effects at it on `score`, for each direction.

    Returns:
        direction -> None where no strength is within the limit, else strength, kl, own and other: the mean over contexts of the
        KL(clean ‖ steered), and of the change in probability of the targets and of the other latent's targets.
    """
    random = random_direction(len(one.direction), seed, one.latent)
    directions = {LATENT: one.direction, RANDOM: random, CEILING: one.ceiling}
    vectors = {name: one.size * direction.double().cpu() for name, direction in directions.items()}
    strengths = {name: _strength(lens, vector, choose, settings) for name, vector in vectors.items()}
    own_strength = strengths[LATENT]
    strengths[REVERSED] = None if own_strength is None else -own_strength
    vectors[REVERSED] = vectors[LATENT]
    usable = {name: f for name, f in strengths.items() if f is not None}
    out: dict[str, Any] = dict.fromkeys(strengths)
    if not usable:
        return out
    forked = run_added(lens, torch.stack([f * vectors[name] for name, f in usable.items()]), score)
    kl, own, other = (
        values.reshape(len(usable), len(score)).mean(1).tolist()
        for values in (forked.kl(), raised(forked, one.targets), raised(forked, one.others))
    )
    for i, (name, f) in enumerate(usable.items()):
        out[name] = {"strength": f, "kl": kl[i], "own": own[i], "other": other[i]}
    return out


def _strength(lens: Lens, vector: Tensor, contexts: list[list[int]], settings: Settings) -> float | None:
    """The largest strength with a mean KL within the limit; one that makes the model's output non-finite is beyond it."""
    strengths = torch.tensor(settings.strengths, dtype=torch.float64)
    forked = run_added(lens, strengths[:, None] * vector, contexts)
    shape = (len(strengths), len(contexts))
    kl = forked.kl().reshape(shape).mean(1).cpu()
    within = (kl <= settings.most_kl) & forked.finite.reshape(shape).all(1).cpu()
    return float(strengths[within].max()) if bool(within.any()) else None


def run_added(lens: Lens, vectors: Tensor, contexts: list[list[int]]) -> Forked:
    """Every vector [n, d] added at every position of every context: n · len(contexts) copies, vector by vector."""
    n = len(contexts)
    rows = vectors.float().to(lens.device)

    def add(at: Activations) -> Tensor:
        return at.x + rows[at.copy // n][:, None]

    return lens.fork(contexts, add, source=torch.arange(n).repeat(len(vectors)))


def raised(forked: Forked, tokens: list[int]) -> Tensor:
    """[R] the change in the summed probability of some tokens at the end of each copy."""
    wanted = torch.tensor(tokens, device=forked.hidden.device)
    steered, clean = (forked.log_probabilities(wanted, clean=which).exp() for which in (False, True))
    return (steered - clean).sum(-1)[:, 0]
