"""A target L0 for recipes whose penalty alone decides how many latents fire: a controller on λ.

Each step multiplies λ by (L0/target)^0.1 and weighs the penalty by λ·(L0/target): an integral and a proportional part in log λ.
The second keeps the first from overshooting. λ is part of the dictionary's state: checkpoints hold it.
"""

import math
from typing import Any

import torch
from torch import Tensor

from saebench.arithmetic.dictionary import Dictionary
from saebench.errors import UsageError
from saebench.recipe import Batch

_RATE = 0.1
# The share of all steps before the integral begins: half of an untrained SAE's latents fire, which would drive λ far too high.
_WAIT = 0.1
# Larger relative errors count as this one.
_MOST = 2.0


def require_target(settings: Any) -> None:
    """Raise UsageError unless `l1` and `l0` of a recipe's settings make sense together."""
    settings.require_not_negative("l1")
    if settings.l0 is None:
        return
    if isinstance(settings.l0, bool) or not isinstance(settings.l0, int | float) or not 0 < settings.l0 < math.inf:
        raise UsageError(f"l0 is {settings.l0!r}, expected a positive number of latents per token")
    settings.require_positive("l1")  # λ = 0 stays 0, whatever it is multiplied by


def penalty_buffer(l1: float) -> dict[str, Tensor]:
    """λ at its first value."""
    return {"l1": torch.tensor(float(l1))}


@torch.no_grad()
def penalty(sae: Dictionary, batch: Batch, fired: Tensor, l0: float | None) -> Tensor:
    """λ of this step, 0-d.

    Args:
        fired: [n] latents that fire on each token of this process.
        l0: the target; None leaves λ at its first value.
    """
    own: Tensor = sae.state["l1"].detach()
    if l0 is None:
        return own
    found = batch.mean(fired.float().mean())
    error: Tensor = (found / l0).clamp(1 / _MOST, _MOST)
    if batch.step >= _WAIT * batch.steps:
        own.mul_(error**_RATE)
    return own * error
