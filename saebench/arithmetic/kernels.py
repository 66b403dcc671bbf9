"""The products of a sparse autoencoder with sparse latents, forward and backward, so that no step is a dense one in width.

With k of `width` latents active per token, four of the six matrix products of a training step touch only k/width of their
terms. Here the encoder's product stays dense (which latents are active is known only afterwards); the rest is sparse:

    x̂ = z W_dec               an embedding bag: the sum of k rows of W_dec for each token
    ∂/∂z = g W_decᵀ            only at the active latents: k dot products for each token
    ∂/∂W_dec = zᵀ g            the transposed code times g: an embedding bag over tokens for each latent
    ∂/∂W_enc = (∂/∂z)ᵀ (x − b) the same with the same sorted order

Each is checked against plain autograd in float64 (tests/training/test_kernels.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from saebench.arithmetic.linear import linear as float32_linear
from saebench.arithmetic.ranks import all_gather_ragged, all_min, all_sum, world
from saebench.arithmetic.selection import above, top_k

# Elements of pre-activations made at a time on a CPU: they are selected from while they are still in its cache.
_CHUNK = 2**20


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

    def dots(self, matrix: Tensor, dense: Tensor) -> Tensor:
        """[nnz] the dot product of each entry's row of `matrix` [width, d] with its token's row of `dense` [n, d]."""
        # An embedding bag's gradient by its weights is just this, and PyTorch has a kernel for it on every device.
        out: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            dense, matrix, self.indices, self.offsets, self.rows, 0
        )
        return out

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
        to_W = ctx.layout.transposed_product(values, g) if ctx.needs_input_grad[1] else None
        return ctx.layout.dots(W_dec, g), to_W, g.sum(0), None


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """z W_dec + b_dec: [n, d_in], with gradients to all three."""
    out: Tensor = _Decode.apply(codes.values, W_dec, b_dec, codes.layout)  # type: ignore[no-untyped-call]
    return out


# --- encoder ---------------------------------------------------------------------------------------------------------

# From pre-activations: which are kept, and their values (≥ 0).
_Select = Callable[["PreActivations"], tuple[Layout, Tensor]]


@dataclass(frozen=True)
class PreActivations:
    """The pre-activations of n tokens, made chunk by chunk when they are looked at; kept only where one chunk holds them all.

    Attributes:
        centred: [n, d_in] x − b_dec.
        W_enc: [width, d_in]
        b_enc: [width]
        dtype: precision of the product. Selected values are computed again in the weights' own precision.
    """

    centred: Tensor
    W_enc: Tensor
    b_enc: Tensor
    dtype: torch.dtype

    @property
    def width(self) -> int:
        return len(self.W_enc)

    def chunks(self) -> Iterator[Tensor]:
        """[rows, width] at a time; each is overwritten by the next."""
        n = len(self.centred)
        rows = n if self.centred.device.type != "cpu" else max(1, min(n, _CHUNK // self.width))
        if rows == n:
            yield self._whole
        else:
            yield from self._make(rows)

    @cached_property
    def _whole(self) -> Tensor:
        """All of them, off the CPU or where they fit into one chunk: the product runs once, however often they are looked at."""
        return next(self._make(len(self.centred)))

    def _make(self, rows: int) -> Iterator[Tensor]:
        if self.dtype != torch.bfloat16:
            yield from (float32_linear(x, self.W_enc, self.b_enc) for x in self.centred.split(rows))
            return
        x, W, b = (t.to(self.dtype) for t in (self.centred, self.W_enc, self.b_enc))
        out = torch.empty(rows, self.width, dtype=self.dtype, device=x.device)
        for part in x.split(rows):
            yield torch.addmm(b, part, W.T, out=out[: len(part)])

    def at(self, layout: Layout) -> Tensor:
        """[nnz] the pre-activations of a layout's entries, in the weights' precision."""
        return layout.dots(self.W_enc, self.centred).add_(self.b_enc[layout.indices])


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, dtype: torch.dtype, select: _Select,
        found: list[Layout],
    ) -> Tensor:  # fmt: skip
        pre = PreActivations(x - b_dec, W_enc, b_enc, dtype)
        layout, values = select(pre)
        found.append(layout)
        ctx.save_for_backward(pre.centred, W_enc, values)
        ctx.layout = layout
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, values = ctx.saved_tensors
        g = torch.where(values > 0, grads[0], 0)
        to_bias = torch.zeros(len(W_enc), dtype=g.dtype, device=g.device).index_add_(0, ctx.layout.indices, g)
        to_W = ctx.layout.transposed_product(g, centred) if ctx.needs_input_grad[2] else None
        # x takes no gradient; b_dec is subtracted from every row, so its own needs only the sum over rows.
        return None, -(to_bias @ W_enc), to_W, to_bias, None, None, None


def encode_top_k(x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, dtype: torch.dtype) -> Codes:
    """The ReLU of each row's k largest of (x − b_dec) W_encᵀ + b_enc.

    Args:
        x: [n, d_in], which takes no gradient.
        W_enc: [width, d_in]
        dtype: of the product from which they are selected.
    """

    def select(pre: PreActivations) -> tuple[Layout, Tensor]:
        indices = torch.cat([top_k(chunk, k).reshape(-1) for chunk in pre.chunks()])
        offsets = torch.arange(0, len(indices) + 1, k, device=indices.device)
        layout = Layout(indices, offsets, pre.width)
        return layout, pre.at(layout).clamp_min_(0)

    return _encode(x, b_dec, W_enc, b_enc, dtype, select)


def encode_batch_top_k(x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, dtype: torch.dtype) -> Codes:
    """The ReLU of the k·n largest pre-activations of the batch (of all processes' batches together)."""

    def select(pre: PreActivations) -> tuple[Layout, Tensor]:
        return _largest(pre, k * len(x))

    return _encode(x, b_dec, W_enc, b_enc, dtype, select)


def _encode(x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, dtype: torch.dtype, select: _Select) -> Codes:
    found: list[Layout] = []
    values: Tensor = _Encode.apply(x, b_dec, W_enc, b_enc, dtype, select, found)  # type: ignore[no-untyped-call]
    return Codes(values, found[0])


def _largest(pre: PreActivations, count: int) -> tuple[Layout, Tensor]:
    """The `count` largest positive pre-activations (times the number of processes, of all of them), with their values.

    A bound that too few exceed is lowered until enough do; the result does not depend on the first guess.
    """
    bound = _first_guess(pre, count)
    while True:
        rows, columns, start = [], [], 0
        for chunk in pre.chunks():
            row, column = above(chunk, bound)
            rows.append(row + start)
            columns.append(column)
            start += len(chunk)
        row, column = torch.cat(rows), torch.cat(columns)
        layout = Layout(column, _offsets(row, start), pre.width)
        if bound <= 0 or int(all_sum(torch.tensor(len(row)))) >= 1.05 * count * world():
            break
        bound = bound / 2 if bound > 1e-3 else 0.0
    values = pre.at(layout)
    every = all_gather_ragged(values)
    wanted = min(count * world(), len(every))
    least = every.topk(wanted).values[-1].clamp_min(torch.finfo(values.dtype).tiny) if wanted else values.new_ones(())
    kept = values >= least
    return Layout(column[kept], _offsets(row[kept], start), pre.width), values[kept]


def _first_guess(pre: PreActivations, count: int) -> float:
    """A bound that somewhat more than `count` should exceed, from the first rows; the same on every process."""
    first = next(pre.chunks())
    share = min(first.numel(), -(-count * len(first) // len(pre.centred)))
    guess = first.flatten().float().topk(share).values[-1]
    return max(0.0, 0.8 * float(all_min(guess)))


def _offsets(rows: Tensor, n: int) -> Tensor:
    """[n + 1] where each row's entries begin, of sorted rows [nnz]."""
    return torch.searchsorted(rows, torch.arange(n + 1, device=rows.device))


# --- dense -----------------------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """x weightᵀ + bias in the weights' precision, its products and those of its gradients in `dtype`."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        product = F.linear(x, weight)
    return product.to(x.dtype) + bias
