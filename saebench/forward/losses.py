"""Per-token cross-entropy and KL in blocks of tokens and vocabulary, never a whole [tokens, vocabulary] in float32.

Each block of logits is computed, used and dropped while it lies in the processor's cache. The sums of exponentials are kept
relative to the largest logit so far (the online softmax of Milakov and Gimelshein, 2018, arXiv 1805.02867, algorithm 3).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Tokens and vocabulary entries of one block. Fixed, so that the order of sums, and so every bit, is independent of the batch
# size. On a CPU a block is 8 MiB: small enough for the last-level cache, and its pages are not mapped anew every time.
_BLOCK = {"cpu": (1024, 2048), "cuda": (8192, 16384)}


class Head(Protocol):
    """The end of a language model: the output layer and everything after it."""

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""

    def logits(self, hidden: Tensor, tokens: slice = ...) -> Tensor:
        """Float32 logits [..., n] of final hidden states [..., d] for a slice of the vocabulary."""


@dataclass(frozen=True)
class Losses:
    """[B, T] float32, nats; 0 where not asked for."""

    clean: Tensor
    spliced: list[Tensor]
    kl: list[Tensor]


def next_tokens(token_ids: Tensor) -> Tensor:
    """[B, T] the token that follows each; the last column repeats itself and must not be used."""
    return torch.cat([token_ids[:, 1:], token_ids[:, -1:]], dim=1)


@torch.no_grad()
def spliced_losses(head: Head, clean: Tensor, spliced: list[Tensor], token_ids: Tensor, scored: Tensor) -> Losses:
    """Cross-entropy of the clean stream and of each spliced one, and KL(clean ‖ spliced), at scored positions.

    Args:
        head: final hidden states -> logits.
        clean: [B, T, d]; spliced: K of the same.
        token_ids: [B, T]
        scored: [B, T] bool
    """
    shape = scored.shape
    places = scored.reshape(-1).nonzero()[:, 0]
    targets = next_tokens(token_ids).reshape(-1)
    streams = [h.reshape(-1, h.shape[-1]) for h in (clean, *spliced)]
    ce = torch.zeros(len(streams), scored.numel(), device=clean.device)
    kl = torch.zeros_like(ce)
    for at in places.split(_block(clean)[0]):
        ce[:, at], kl[1:, at] = _rows_losses(head, [h[at] for h in streams], targets[at])
    ce, kl = ce.reshape(-1, *shape), kl.reshape(-1, *shape)
    return Losses(ce[0], list(ce[1:]), list(kl[1:]))


def _rows_losses(head: Head, streams: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies [1 + K, n] of streams [n, d], the first of which is clean, and KL of the others from it [K, n]."""
    sums = [_SoftmaxSums(targets) for _ in streams]
    gaps = targets.new_zeros(len(streams) - 1, len(targets), dtype=torch.float64)
    width = _block(targets)[1]
    for first in range(0, head.vocabulary, width):
        block = slice(first, min(first + width, head.vocabulary))
        reference = head.logits(streams[0], block)
        powers, shrink = sums[0].add(reference, first)
        for k, stream in enumerate(streams[1:]):
            logits = head.logits(stream, block)
            sums[k + 1].add(logits, first)
            # Σ p (l − l') − (lse − lse'): differences first, so that nearly equal streams do not cancel to noise.
            gap = torch.sub(reference, logits, out=logits).mul_(powers)
            gaps[k] = gaps[k] * shrink + gap.sum(1)
    lse = torch.stack([s.logsumexp() for s in sums])
    ce = lse - torch.stack([s.target for s in sums])
    return ce.float(), (gaps / sums[0].total - (lse[0] - lse[1:])).float()


class _SoftmaxSums:
    """Running sums of a softmax over the vocabulary, for n rows of logits that come block by block.

    Attributes:
        peak: [n] float32, the largest logit so far.
        total: [n] float64, Σ exp(logit − peak) so far.
        target: [n] float32, the logit of the row's target, once its block was added.
    """

    def __init__(self, targets: Tensor) -> None:
        self._targets = targets
        self.peak = torch.full_like(targets, torch.finfo(torch.float32).min, dtype=torch.float32)
        self.total = torch.zeros_like(targets, dtype=torch.float64)
        self.target = torch.zeros_like(self.peak)

    def add(self, logits: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Add logits [n, width] of the vocabulary entries from `first` on.

        Returns:
            exp(logits − peak) [n, width], and [n] the factor for sums relative to the previous peak.
        """
        peak = torch.maximum(self.peak, logits.amax(1))
        shrink = (self.peak - peak).exp_().double()
        powers = (logits - peak[:, None]).exp_()
        self.peak = peak
        self.total = self.total * shrink + powers.sum(1)
        place = self._targets - first
        inside = (place >= 0) & (place < logits.shape[1])
        found = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.target = torch.where(inside, found, self.target)
        return powers, shrink

    def logsumexp(self) -> Tensor:
        """[n] float64, of all logits."""
        return self.peak + self.total.log()


@torch.no_grad()
def log_probabilities(head: Head, hidden: Tensor) -> Tensor:
    """[T, V] next-token log-probabilities of one context's final hidden states [T, d]."""
    return head.logits(hidden).log_softmax(-1)


def _block(tensor: Tensor) -> tuple[int, int]:
    return _BLOCK["cuda" if tensor.is_cuda else "cpu"]
