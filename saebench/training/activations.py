"""Activations on the fly: contexts of text -> rows that an SAE is trained on.

The model stops at the hook point. Special tokens and tokens longer than ten median norms are left out, as in the tasks that SAEs
are measured on. With several processes each runs its share of a chunk's batches, and then all hold the whole chunk: what a
training step sees does not depend on how many processes there are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from saebench.corpus import Contexts
from saebench.errors import NonFiniteError, SaebenchError, is_out_of_memory
from saebench.forward.calibration import CONTEXTS, Calibration, calibrate
from saebench.hookpoint import HookPoint
from saebench.models import DTYPES
from saebench.source import Source
from saebench.training.text import Text, context_order


class Chunks(Protocol):
    """Activations in chunks that fit into memory; an epoch has `per_epoch` of them."""

    @property
    def per_epoch(self) -> int: ...

    def chunk(self, number: int) -> Tensor:
        """[n, d_in] rows of the chunk of that number, counted over all epochs, in a fixed order."""
        ...


@dataclass
class Activations:
    """Chunks straight from the language model.

    Attributes:
        subject, hook: the model and where it stops.
        text: the contexts.
        calibration: which tokens are outliers.
        contexts: how many contexts a chunk has.
        batch: contexts a forward pass; halved for good when memory runs out.
        seed: of the order of contexts.
        between: called before each forward pass, equally often by every process (some have no pass left in the last round):
            it may communicate, and raise on all of them.
        passed: called after each forward pass with how many of the chunk's are done, and how many there are.
    """

    subject: Source
    hook: HookPoint
    text: Text
    calibration: Calibration
    contexts: int
    batch: int
    seed: int
    between: Callable[[], None] = lambda: None
    passed: Callable[[int, int], None] = lambda done, total: None

    @property
    def per_epoch(self) -> int:
        return -(-len(self.text) // self.contexts)

    def chunk(self, number: int) -> Tensor:
        epoch, i = divmod(number, self.per_epoch)
        order = context_order(len(self.text), self.seed, epoch)
        return self.rows(order[i * self.contexts : (i + 1) * self.contexts])

    def rows(self, contexts: np.ndarray) -> Tensor:
        """[n, d_in] in the model's dtype: the activations of these contexts that are trained on.

        Raises:
            NonFiniteError: the model's activations are not finite.
            SaebenchError: not even one context fits into memory.
        """
        while True:
            try:
                return self._gather(list(self._passes(self._share(contexts))))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.batch == 1 or dist.is_initialized():  # alone, a rank cannot go back: others wait for its rows
                    smaller = (
                        "--dtype bfloat16" if self.batch == 1 else "a smaller context_batch (TOML), or --dtype bfloat16"
                    )
                    raise SaebenchError(
                        f"{self.batch} context(s) of {self.text.length} tokens do not fit into the memory of "
                        f"{self.subject.device}: set {smaller}"
                    ) from error
                self.batch //= 2
                torch.cuda.empty_cache()

    def _share(self, contexts: np.ndarray) -> list[np.ndarray]:
        """This process's forward passes over a chunk: every R-th; as many as any other's, the last of no contexts if need be."""
        batches = [contexts[i : i + self.batch] for i in range(0, len(contexts), self.batch)]
        if not dist.is_initialized():
            return batches
        batches += [contexts[:0]] * (-len(batches) % dist.get_world_size())
        return batches[dist.get_rank() :: dist.get_world_size()]

    def _passes(self, batches: list[np.ndarray]) -> Iterator[Tensor]:
        for done, contexts in enumerate(batches, 1):
            yield self._pass(contexts)
            self.passed(done, len(batches))

    def _pass(self, contexts: np.ndarray) -> Tensor:
        """[n, d_in] the rows of one forward pass; none of no contexts."""
        self.between()
        if len(contexts):
            return self._capture(contexts)
        return torch.empty(0, self.subject_width, dtype=DTYPES[self.subject.dtype], device=self.subject.device)

    def _capture(self, contexts: np.ndarray) -> Tensor:
        device = self.subject.device
        ids = torch.from_numpy(self.text.token_ids[contexts].astype(np.int64)).to(device)
        special = torch.from_numpy(self.text.special(contexts)).to(device)
        x, _ = self.subject.capture(ids, self.hook, self.hook)
        kept: Tensor = x[self.calibration.scored(x, special)]
        if not bool(torch.isfinite(kept).all()):
            raise NonFiniteError(
                f"{self.subject.loaded.id} gives activations at {self.hook} that are not finite in {self.subject.dtype}: "
                "try --dtype float32"
            )
        return kept

    def _gather(self, mine: list[Tensor]) -> Tensor:
        """Every process's rows in the order of the chunk, on every process."""
        if not dist.is_initialized():
            return torch.cat(mine)
        own = torch.cat(mine)
        sizes: list[list[int]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(sizes, [len(m) for m in mine])
        padded = torch.zeros(max(map(sum, sizes)), own.shape[1], dtype=own.dtype, device=own.device)
        padded[: len(own)] = own
        # As bytes: gloo has no bfloat16.
        parts = [torch.empty_like(padded).view(torch.uint8) for _ in sizes]
        dist.all_gather(parts, padded.view(torch.uint8))
        split = [p.view(own.dtype)[: sum(s)].split(s) for p, s in zip(parts, sizes, strict=True)]
        return torch.cat([piece for passes in zip(*split, strict=True) for piece in passes])

    @property
    def subject_width(self) -> int:
        return int(self.calibration.sample.shape[1])


def calibrate_on(
    text: Text, subject: Source, hook: HookPoint, max_norm: float | None, batch: int, cache: Path
) -> Calibration:
    """Norms and mean at this hook point, from 32 contexts spread over the text."""
    rows = np.unique(np.linspace(0, len(text) - 1, min(CONTEXTS, len(text))).astype(np.int64))
    few = Contexts(text.token_ids[rows].astype(np.int64), rows, text.special(rows), ())
    return calibrate(subject, few, hook, hook, max_norm, batch, cache)
