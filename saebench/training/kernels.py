"""The products of a sparse autoencoder with sparse latents, forward and backward, so that no step is a dense one in width.

With k of `width` latents active per token, four of the six matrix products of a training step touch only k/width of their
terms. Here the encoder's product stays dense (which latents are active is known only afterwards); the rest is sparse:

    x̂ = z W_dec               an embedding bag: the sum of k rows of W_dec for each token
    ∂/∂z = g W_decᵀ            only at the active latents: k dot products for each token
    ∂/∂W_dec = zᵀ g            the transposed code times g: an embedding bag over tokens for each latent
    ∂/∂W_enc = (∂/∂z)ᵀ (x − b) the same with the same sorted order

Each is checked against plain autograd in float64 (tests/training/test_kernels.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from saebench.training.ranks import all_gather_ragged, world

# Bytes of pre-activations made at a time on a CPU: they are selected from while they are still in its cache.
_CHUNK_BYTES = 2**22


@dataclass(frozen=True)
class Layout:
    """Which latents are active on which of n tokens, row by row.

    Attributes:
        indices: [nnz] int64, the latent.
        offsets: [n + 1] int64, row i is indices[offsets[i]:offsets[i + 1]].
        width: number of latents.
    """

    indices: Tensor
    offsets: Tensor
    width: int

    @cached_property
    def rows(self) -> Tensor:
        """[nnz] the token each entry belongs to."""
        n = len(self.offsets) - 1
        return torch.repeat_interleave(
            torch.arange(n, device=self.indices.device), self.offsets.diff(), output_size=len(self.indices)
        )

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """(order, rows, offsets): entries sorted by latent, the token of each, and where each latent's begin [width + 1]."""
        latents, order = torch.sort(self.indices.int(), stable=True)
        edges = torch.arange(self.width + 1, device=latents.device, dtype=latents.dtype)
        return order, self.rows[order], torch.searchsorted(latents, edges)

    def transposed_product(self, values: Tensor, dense: Tensor) -> Tensor:
        """[width, d] the transpose of the sparse [n, width] matrix of these values times dense [n, d]."""
        order, rows, offsets = self.by_latent
        return _bag(rows, dense, offsets, values[order])


@dataclass(frozen=True)
class Codes:
    """Sparse latents while training: like `saebench.sae.Latents`, but with a gradient, and zeros may stand among the values.

    Attributes:
        values: [nnz], ≥ 0.
        layout: where they stand.
    """

    values: Tensor
    layout: Layout

    def fired(self) -> Tensor:
        """[width] on how many tokens each latent is active."""
        active = (self.values.detach() > 0).float()
        return torch.zeros(self.layout.width, device=active.device).index_add_(0, self.layout.indices, active)

    def between(self, low: int, high: int) -> "Codes":
        """The codes of latents low ≤ j < high, renumbered from 0."""
        inside = (self.layout.indices >= low) & (self.layout.indices < high)
        counts = F.pad(inside.cumsum(0), (1, 0))
        return Codes(
            self.values[inside], Layout(self.layout.indices[inside] - low, counts[self.layout.offsets], high - low)
        )


def _bag(indices: Tensor, matrix: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    out: Tensor = F.embedding_bag(
        indices, matrix, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    return out


# --- decoder ---------------------------------------------------------------------------------------------------------


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, b_dec: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.layout = layout
        return _bag(layout.indices, W_dec, layout.offsets, values).add_(b_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        g = grads[0].contiguous()
        needs = ctx.needs_input_grad
        return (
            _dots(ctx.layout, W_dec, g) if needs[0] else None,
            ctx.layout.transposed_product(values, g) if needs[1] else None,
            g.sum(0) if needs[2] else None,
            None,
        )


def _dots(layout: Layout, matrix: Tensor, g: Tensor) -> Tensor:
    """[nnz] the dot product of each entry's row of `matrix` with its token's row of g: an embedding bag's own gradient."""
    with torch.enable_grad():
        weights = torch.zeros(len(layout.indices), dtype=g.dtype, device=g.device, requires_grad=True)
        out = _bag(layout.indices, matrix.detach(), layout.offsets, weights)
        (found,) = torch.autograd.grad(out, weights, g)
    return found


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """z W_dec + b_dec: [n, d_in], with gradients to all three."""
    out: Tensor = _Decode.apply(codes.values, W_dec, b_dec, codes.layout)  # type: ignore[no-untyped-call]
    return out


# --- encoder ---------------------------------------------------------------------------------------------------------

# What is selected from the pre-activations of centred activations [n, d_in]: values and layout.
_Select = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Layout]]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, select: _Select, found: list[Layout]
    ) -> Tensor:
        centred = x - b_dec
        values, layout = select(centred, W_enc, b_enc)
        values = values.clamp_min(0)
        found.append(layout)
        ctx.save_for_backward(centred, W_enc, values)
        ctx.layout = layout
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, values = ctx.saved_tensors
        g = torch.where(values > 0, grads[0], 0)
        to_bias = torch.zeros(len(W_enc), dtype=g.dtype, device=g.device).index_add_(0, ctx.layout.indices, g)
        # x itself takes no gradient; b_dec is subtracted from every row, so its gradient needs only the sum over rows.
        return None, -(to_bias @ W_enc), ctx.layout.transposed_product(g, centred), to_bias, None, None


def _encode(x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, select: _Select) -> Codes:
    found: list[Layout] = []
    values: Tensor = _Encode.apply(x, b_dec, W_enc, b_enc, select, found)  # type: ignore[no-untyped-call]
    return Codes(values, found[0])


def encode_top_k(x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Codes:
    """The ReLU of each row's k largest of (x − b_dec) W_encᵀ + b_enc; x [n, d_in], W_enc [width, d_in]. x takes no gradient."""

    def select(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Layout]:
        parts = [top_k(_pre(rows, W_enc, b_enc), k) for rows in centred.split(_rows(centred, len(W_enc)))]
        indices = torch.cat([i.reshape(-1) for _, i in parts])
        values = torch.cat([v.reshape(-1) for v, _ in parts])
        offsets = torch.arange(0, len(indices) + 1, k, device=indices.device)
        return values, Layout(indices, offsets, len(W_enc))

    return _encode(x, b_dec, W_enc, b_enc, select)


def encode_batch_top_k(x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Codes:
    """The ReLU of the k·n largest pre-activations of the batch (of all processes' batches together)."""

    def select(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Layout]:
        pre = torch.cat([_pre(rows, W_enc, b_enc) for rows in centred.split(_rows(centred, len(W_enc)))])
        best = pre.reshape(-1).topk(min(k * len(pre), pre.numel())).values
        least = all_gather_ragged(best).topk(k * len(pre) * world()).values[-1] if world() > 1 else best[-1]
        chosen = pre >= least.clamp_min(torch.finfo(pre.dtype).tiny)
        indices = chosen.nonzero()[:, 1]
        return pre[chosen], Layout(indices, F.pad(chosen.sum(1).cumsum(0), (1, 0)), len(W_enc))

    return _encode(x, b_dec, W_enc, b_enc, select)


def _pre(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    return F.linear(centred, W_enc, b_enc)


def _rows(centred: Tensor, width: int) -> int:
    """How many rows are encoded at a time."""
    if centred.device.type != "cpu":
        return len(centred)
    return max(1, _CHUNK_BYTES // (centred.element_size() * width))


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices [n, k] of each row's k largest scores, in no particular order."""
    values, indices = scores.topk(k, dim=-1, sorted=False)
    return values, indices


# --- dense -----------------------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x weightᵀ + bias with plain gradients: for recipes whose codes are not sparse while they train."""
    return F.linear(x, weight, bias)
