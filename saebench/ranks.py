"""Several processes, one result: under `torchrun -m saebench run …` each rank runs its own contexts; rank 0 merges and writes."""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from saebench.errors import SaebenchError, UsageError

T = TypeVar("T")


def start(tensors_on: str = "cpu") -> tuple[int, int]:
    """(rank, world size) of this process; joins torchrun's process group where there is one.

    Args:
        tensors_on: the device of tensors that ranks exchange at every step, as in training; on a GPU through NCCL.

    Raises:
        UsageError: WORLD_SIZE is set and RANK is not.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        if "RANK" not in os.environ:
            raise UsageError("WORLD_SIZE is set and RANK is not: start several processes with torchrun")
        # Ranks of a measurement exchange a few megabytes of sums at the end: gloo serves CPUs and GPUs alike. The timeout is
        # long because the others wait while rank 0 computes scores of the weights: over half an hour for a large SAE.
        if tensors_on.startswith("cuda"):
            torch.cuda.set_device(tensors_on)
        backend = "cpu:gloo,cuda:nccl" if tensors_on.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=7))
    return int(os.environ.get("RANK", "0")), world


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The GPU of this rank where each rank has one; else `device`."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None and torch.cuda.device_count() > 1 else device


def gather(value: Any) -> list[Any]:
    """The values of all ranks, in rank order, on rank 0; an empty list on the others."""
    if not dist.is_initialized():
        return [value]
    out: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, out)
    return out or []


def common(names: Iterable[str]) -> list[str]:
    """The names that all ranks share; the same on every rank."""
    everyone = gather(sorted(names))
    shared = [name for name in everyone[0] if all(name in other for other in everyone)] if everyone else []
    found: list[str] = agree(shared)
    return found


def first(message: str | None) -> str | None:
    """The message of the lowest rank that has one; the same on every rank."""
    found: str | None = agree(next((m for m in gather(message) if m), None))
    return found


def agree(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def decide(make: Callable[[], T]) -> T:
    """The result of `make` on rank 0, for every rank. The others do not call it, because their disks may differ.

    Raises:
        SaebenchError: `make` raised it on rank 0; raised on every rank.
    """
    made: T | None = None
    problem: SaebenchError | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            made = make()
        except SaebenchError as error:
            problem = error
    made, message, usage = agree((made, None if problem is None else str(problem), isinstance(problem, UsageError)))
    if message is not None:
        raise problem or (UsageError if usage else SaebenchError)(message)
    return made


def everywhere(call: Callable[[], T]) -> T:
    """The result of `call`, which every rank makes for itself; where one rank fails, all fail.

    Raises:
        SaebenchError: of this rank, else of the lowest rank that failed.
    """
    problem = None
    try:
        made = call()
    except SaebenchError as error:
        problem = error
    message = first(None if problem is None else str(problem))
    if message is not None:
        raise problem or SaebenchError(message)
    return made


def require_same(name: str, value: Any) -> None:
    """Require the value of rank 0 on every rank: sums over ranks that measure different things mean nothing.

    Args:
        name: of the value, in the error.

    Raises:
        SaebenchError: a rank has another value; raised on every rank.
    """
    everyone = gather(value)
    others = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
    message = f"rank {others[0]} has another {name} than rank 0: give every host the same files" if others else None
    if message := agree(message):
        raise SaebenchError(message)
