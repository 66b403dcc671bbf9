"""The shuffling buffer: chunks of activations -> batches that mix documents.

A chunk holds rows of a thousand or more contexts drawn from all documents; its rows are shuffled together with what the last
chunk left over. Each activation of an epoch's chunks is handed out exactly once. Where it stands is two numbers and the rows
left over, so training goes on from there with the same batches.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from saebench.streams import numpy_generator
from saebench.training.activations import Chunks


class Buffer:
    """Batches [batch, d_in] float32 without end.

    Attributes:
        refill: the number of the chunk that is in memory.
        taken: batches of it handed out.
        carry: [< batch, d_in] rows that the chunk before it left over.
    """

    def __init__(self, chunks: Chunks, batch: int, seed: int) -> None:
        self.chunks, self.batch, self.seed = chunks, batch, seed
        self.refill = 0
        self.taken = 0
        self.carry: Tensor | None = None
        self._rows: Tensor | None = None
        self._order: Tensor | None = None

    def sample(self, count: int) -> Tensor:
        """[≤ count, d_in] float32 rows that come first, without taking them."""
        rows, order = self._load()
        return rows[order[:count]].float()

    def batches(self) -> Iterator[Tensor]:
        """Yield the rest of the chunk in memory, batch by batch; move on to the next chunk at its end."""
        rows, order = self._load()
        count = len(order) // self.batch
        while self.taken < count:
            # Counted before it is yielded, so that a checkpoint after the step resumes with the next batch.
            self.taken += 1
            yield rows[order[(self.taken - 1) * self.batch : self.taken * self.batch]].float()
        self.carry = rows[order[count * self.batch :]].clone()
        self.refill += 1
        self.taken = 0
        self._rows = self._order = None

    def state(self) -> dict[str, int | Tensor]:
        """Where it stands."""
        empty = {} if self.carry is None else {"carry": self.carry}
        return {"refill": self.refill, "taken": self.taken, **empty}

    def restore(self, state: dict[str, int | Tensor], device: torch.device) -> None:
        """Go on from a state."""
        self.refill, self.taken = int(state["refill"]), int(state["taken"])
        carry = state.get("carry")
        self.carry = carry.to(device) if isinstance(carry, Tensor) else None
        self._rows = self._order = None

    def _load(self) -> tuple[Tensor, Tensor]:
        if self._rows is None or self._order is None:
            fresh = self.chunks.chunk(self.refill)
            self._rows = fresh if self.carry is None else torch.cat([self.carry.to(fresh), fresh])
            order = numpy_generator(f"train/shuffle/{self.refill}", self.seed).permutation(len(self._rows))
            self._order = torch.from_numpy(order).to(self._rows.device)
        return self._rows, self._order
