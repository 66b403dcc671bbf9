"""Ctrl-C ends a run between two steps or two forward passes, when there is something whole to save."""

import signal
import threading
from types import TracebackType
from typing import Any

import torch
from torch import distributed as dist


class Stopped(Exception):
    """Raised after Ctrl-C, between two steps or forward passes."""


class Interrupt:
    """While it is entered, Ctrl-C is noted rather than raised; a second one is raised at once."""

    def __init__(self) -> None:
        self.noted = False
        self._before: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: Any) -> None:
        self.noted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise Stopped on every process where any was interrupted; all of them ask at the same places."""
        if not dist.is_initialized():
            interrupted = self.noted
        else:
            flag = torch.tensor([float(self.noted)])
            if dist.get_backend() == "nccl":
                flag = flag.cuda()
            dist.all_reduce(flag)
            interrupted = bool(flag.item())
        if interrupted:
            raise Stopped
