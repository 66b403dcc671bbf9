"""A chunk's forward passes split over processes: the same rows on all of them; Ctrl-C between two passes stops all of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from saebench.errors import SaebenchError
from saebench.forward.calibration import Calibration
from saebench.hookpoint import HookPoint
from saebench.training.activations import Activations
from saebench.training.interrupt import Interrupt, Stopped
from saebench.training.text import Text
from tests.raising import raises


class Numbered:
    """A model whose activations are its token ids; notes Ctrl-C in a forward pass where it is told to."""

    device = torch.device("cpu")

    def __init__(self, interrupt: Interrupt | None = None) -> None:
        self.interrupt, self.passes = interrupt, 0
        self.dtype = "float32"

    def capture(self, ids: torch.Tensor, read: HookPoint, write: HookPoint) -> tuple[torch.Tensor, None]:
        self.passes += 1
        if self.interrupt is not None:
            self.interrupt.noted = True
        return ids[..., None].float().expand(-1, -1, 2), None


def source(model: Any, interrupt: Interrupt) -> Activations:
    """Chunks of ten contexts, two a forward pass: five passes, which two processes cannot share evenly."""
    text = Text(np.arange(40, dtype=np.int32).reshape(10, 4), np.array([3]), 1)
    calibration = Calibration(1.0, torch.inf, torch.zeros(2), torch.zeros(1, 2))
    hook = HookPoint.parse("blocks.0.hook_resid_post")
    return Activations(model, hook, text, calibration, 10, 2, 0, interrupt.check)


class Limited(Numbered):
    """A model that asks for more memory than there is, from so many contexts on."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def capture(self, ids: torch.Tensor, read: HookPoint, write: HookPoint) -> tuple[torch.Tensor, None]:
        if len(ids) > self.most:
            torch.empty(2**50)
        return super().capture(ids, read, write)


def test_forward_passes_shrink_until_they_fit_into_memory() -> None:
    made = source(Limited(1), Interrupt())
    torch.testing.assert_close(made.chunk(0), source(Numbered(), Interrupt()).chunk(0))
    assert made.batch == 1
    with raises(SaebenchError, "1 context", "4 tokens", "--dtype bfloat16"):
        source(Limited(0), Interrupt()).chunk(0)


def _worker(rank: int, rendezvous: str, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    rows = source(Numbered(), Interrupt()).chunk(0)
    interrupt = Interrupt()
    model = Numbered(interrupt if rank == 1 else None)
    try:
        source(model, interrupt).chunk(1)
        stopped = False
    except Stopped:
        stopped = True
    queue.put((rows.tolist(), stopped, model.passes))
    dist.barrier()
    dist.destroy_process_group()


def test_processes_share_a_chunk_and_stop_together(tmp_path: Path) -> None:
    """One of two is interrupted during its first pass: neither makes another, and neither waits for ever."""
    context = mp.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, str(tmp_path / "meet"), queue)) for rank in range(2)]
    for w in workers:
        w.start()
    found = [queue.get(timeout=60) for _ in workers]
    for w in workers:
        w.join(30)
        assert w.exitcode == 0
    alone = source(Numbered(), Interrupt()).chunk(0)
    assert len(alone) == 39, "all but the special id"
    assert [rows for rows, _, _ in found] == [alone.tolist()] * 2
    assert [(stopped, passes) for _, stopped, passes in found] == [(True, 1)] * 2
