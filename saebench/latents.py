"""Sparse latents, kept sparse from encode to decode: at L0 64 of 65,536 latents the dense matrix is a thousand times larger."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Latents:
    """Sparse latents of n tokens in CSR form: only the latents that fire (z ≠ 0) are stored.

    Attributes:
        values: [nnz] the nonzero activations.
        indices: [nnz] the latent of each value (int64).
        offsets: [n + 1] row i is `values[offsets[i]:offsets[i + 1]]` (int64).
        shape: the shape of the dense form, (*leading, d_sae), where the product of `leading` is n.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor
    shape: tuple[int, ...]

    @classmethod
    def from_dense(cls, z: Tensor) -> "Latents":
        """Latents of a dense [*leading, d_sae] tensor."""
        rows = z.reshape(-1, z.shape[-1])
        fires = rows != 0
        indices = fires.nonzero()[:, 1]
        return cls(rows[fires], indices, _offsets(fires.sum(1)), tuple(z.shape))

    @classmethod
    def from_topk(cls, values: Tensor, indices: Tensor, d_sae: int) -> "Latents":
        """Latents of [n, k] values and indices; zeros among the values do not fire and are dropped."""
        fires = values != 0
        return cls(values[fires], indices[fires], _offsets(fires.sum(1)), (len(values), d_sae))

    @classmethod
    def concatenate(cls, parts: "list[Latents]") -> "Latents":
        """Concatenate the rows of several Latents with equal d_sae; shape (n, d_sae)."""
        if len(parts) == 1:
            return parts[0]
        counts = torch.cat([p.counts() for p in parts])
        return cls(
            torch.cat([p.values for p in parts]),
            torch.cat([p.indices for p in parts]),
            _offsets(counts),
            (len(counts), parts[0].shape[-1]),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Latents(shape={tuple(self.shape)}, fire={len(self.values)})"

    def counts(self) -> Tensor:
        """[n] the number of latents that fire on each token, its L0."""
        return self.offsets.diff()

    def rows(self) -> Tensor:
        """[nnz] the row of each value."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.values.device), self.counts())

    def select(self, mask: Tensor) -> "Latents":
        """The rows where `mask` (boolean, n elements in any shape) is true; shape (n_true, d_sae)."""
        mask = mask.reshape(-1)
        keep = mask[self.rows()]
        counts = self.counts()[mask]
        return Latents(self.values[keep], self.indices[keep], _offsets(counts), (len(counts), self.shape[-1]))

    def reshape(self, *leading: int) -> "Latents":
        """The same rows under other leading dimensions."""
        if math.prod(leading) != len(self):
            raise ValueError(f"{len(self)} rows do not fill {leading}")
        return replace(self, shape=(*leading, self.shape[-1]))

    def dense(self) -> Tensor:
        """The dense tensor [*leading, d_sae]."""
        out = self.values.new_zeros(len(self), self.shape[-1])
        out[self.rows(), self.indices] = self.values
        return out.reshape(self.shape)


def _offsets(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0))
