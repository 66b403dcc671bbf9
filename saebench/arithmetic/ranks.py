"""Several processes training one SAE: means over all of them."""

import torch
from torch import Tensor
from torch import distributed as dist


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(value: Tensor) -> Tensor:
    """The sum over all processes, without gradient; the tensor itself where there is one process."""
    if world() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def all_min(value: Tensor) -> Tensor:
    """The smallest of all processes' values."""
    if world() == 1:
        return value.detach()
    least = value.detach().clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least


def batch_mean(value: Tensor) -> Tensor:
    """The mean over all processes of each one's mean over its (equally many) rows.

    Its gradient is that of the local mean: gradients are averaged over processes afterwards, and
    (1/W) Σᵣ F′(mean)·∂localᵣ is the gradient of F(mean).
    """
    if world() == 1:
        return value
    return value + (all_sum(value) / world() - value.detach())


def all_gather_ragged(values: Tensor) -> Tensor:
    """The one-dimensional tensors of all processes, one after the other."""
    if world() == 1:
        return values
    size = torch.tensor([len(values)], device=values.device)
    sizes = [torch.zeros_like(size) for _ in range(world())]
    dist.all_gather(sizes, size)
    longest = int(max(sizes))
    padded = torch.nn.functional.pad(values, (0, longest - len(values)))
    parts = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, sizes, strict=True)])


@torch.no_grad()
def variance(rows: Tensor) -> Tensor:
    """Σ‖row − mean‖²/n of rows [n, d] over all processes (equally many rows each), 0-d, without gradient."""
    mean = all_sum(rows.mean(0)) / world()
    return all_sum((rows - mean).pow(2).sum(1).mean()) / world()
