"""Several processes, one result: `torchrun -m saebench run …` gives each rank its own contexts; rank 0 merges and writes."""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from saebench.errors import SaebenchError, UsageError

T = TypeVar("T")


def start(tensors_on: str = "cpu") -> tuple[int, int]:
    """(rank, world size) of this process; joins the group that torchrun set up, if it did.

    Args:
        tensors_on: the device of tensors that will travel all the time, as in training; GPUs then talk through NCCL.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        if "RANK" not in os.environ:
            raise UsageError("WORLD_SIZE is set and RANK is not: start several processes with torchrun")
        # What travels between ranks of a measurement are sums, a few megabytes at the end: gloo serves CPUs and GPUs alike. The
        # others wait while rank 0 makes scores of the weights, which for a large SAE takes longer than gloo's half hour.
        if tensors_on.startswith("cuda"):
            torch.cuda.set_device(tensors_on)
        backend = "cpu:gloo,cuda:nccl" if tensors_on.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=7))
    return int(os.environ.get("RANK", "0")), world


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """This rank's GPU, where each rank has one."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None and torch.cuda.device_count() > 1 else device


def gather(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on rank 0; an empty list on the others. With one process, its own."""
    if not dist.is_initialized():
        return [value]
    out: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, out)
    return out or []


def common(names: Iterable[str]) -> list[str]:
    """The names that every rank has, on every rank."""
    everyone = gather(sorted(names))
    shared = [name for name in everyone[0] if all(name in other for other in everyone)] if everyone else []
    found: list[str] = agree(shared)
    return found


def first(message: str | None) -> str | None:
    """The first rank's message that has one, on every rank."""
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
    """What rank 0 makes, on every rank. The others do not call `make`: what they see on their own disk does not count.

    Raises:
        SaebenchError: rank 0's, on every rank.
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


def require_same(what: str, value: Any) -> None:
    """Every rank has rank 0's value, or all of them stop: sums over ranks that measure different things are no numbers.

    Raises:
        SaebenchError: a rank has another; on every rank.
    """
    everyone = gather(value)
    others = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
    message = f"rank {others[0]} has another {what} than rank 0: give every host the same files" if others else None
    if message := agree(message):
        raise SaebenchError(message)
