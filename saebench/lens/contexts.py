"""Contexts of unequal length as batches: right-padded, which no earlier token of a causal model can see."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saebench.errors import UsageError

TokenIds = Tensor | Sequence[Sequence[int]]
# Positions at which a result is wanted: None for the last token of each context, the same ones for every row [P], or each
# row's own [R, P]. Negative ones count from the end of the context.
Positions = None | int | Sequence[int] | Tensor


@dataclass(frozen=True)
class Contexts:
    """N contexts.

    Attributes:
        token_ids: [N, T] int64, right-padded with 0.
        lengths: [N] int64.
    """

    token_ids: Tensor
    lengths: Tensor

    @classmethod
    def of(
        cls, token_ids: TokenIds, device: torch.device, vocabulary: int, longest: int | None, new: int = 0
    ) -> "Contexts":
        """Contexts of a tensor [N, T] or of sequences of unequal length.

        Args:
            longest: positions of the model; None for no limit.
            new: tokens that will follow.

        Raises:
            UsageError: no context, an empty one, one longer than the model's positions, or an unknown token id.
        """
        rows = [torch.as_tensor(row, dtype=torch.int64).reshape(-1) for row in token_ids]
        if not rows or min(map(len, rows)) == 0:
            raise UsageError("a context without a token: give at least one token id a context")
        lengths = torch.tensor([len(row) for row in rows])
        if longest is not None and int(lengths.max()) + new > longest:
            more = f" and {new} new ones" if new else ""
            raise UsageError(
                f"{int(lengths.max())} tokens{more} exceed the model's {longest} positions: shorten the text"
                + (" or generate fewer" if new else "")
            )
        padded = torch.nn.utils.rnn.pad_sequence([row.cpu() for row in rows], batch_first=True)
        if int(padded.min()) < 0 or int(padded.max()) >= vocabulary:
            wrong = padded[(padded < 0) | (padded >= vocabulary)][0]
            raise UsageError(f"token id {int(wrong)} is outside the model's vocabulary of {vocabulary}")
        return cls(padded.to(device), lengths.to(device))

    def __len__(self) -> int:
        return len(self.token_ids)

    def take(self, rows: Tensor) -> Tensor:
        """[n, T'] token ids of these contexts, no wider than the longest of them."""
        return self.token_ids[rows, : int(self.lengths[rows].max())]

    def positions(self, at: Positions, source: Tensor) -> Tensor:
        """[R, P] the wanted positions of rows whose contexts are `source` [R], none of them negative.

        Raises:
            UsageError: a position outside its context.
        """
        wanted = torch.as_tensor(-1 if at is None else at, dtype=torch.int64, device=source.device)
        if wanted.ndim < 2:
            wanted = wanted.reshape(1, -1).expand(len(source), -1)
        lengths = self.lengths[source][:, None]
        found = torch.where(wanted < 0, wanted + lengths, wanted)
        outside = (found < 0) | (found >= lengths)
        if bool(outside.any()):
            row, column = outside.nonzero()[0].tolist()
            raise UsageError(f"position {int(wanted[row, column])} is outside a context of {int(lengths[row])} tokens")
        return found
