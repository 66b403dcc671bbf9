"""Several processes, one result: `torchrun -m saebench run …` gives each rank its own contexts; rank 0 merges and writes."""

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist


def start() -> tuple[int, int]:
    """(rank, world size) of this process; joins the group that torchrun set up, if it did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        # What travels between ranks are sums, a few megabytes at the end: gloo serves CPUs and GPUs alike.
        dist.init_process_group("gloo")
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
