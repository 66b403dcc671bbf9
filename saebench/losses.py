"""Per-token cross-entropy and KL without ever holding [tokens, vocabulary] in float32 for more than one chunk."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Head = Callable[[Tensor], Tensor]

# Bytes of float32 logits made at a time. On a CPU they stay below 32 MiB, above which the allocator maps fresh pages for every
# temporary (measured: a third of the time of this file); a GPU wants larger matrix products.
_CHUNK_BYTES = {"cpu": 28 * 2**20, "cuda": 2**30}


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
        head: final hidden states [n, d] -> float32 logits [n, V].
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
    for at in places.split(_rows_per_chunk(head, clean)):
        reference = head(streams[0][at])
        lse = reference.logsumexp(-1)
        ce[0, at] = lse - _pick(reference, targets[at])
        probabilities = (reference - lse[:, None]).exp_() if spliced else reference
        for k, stream in enumerate(streams[1:], start=1):
            logits = head(stream[at])
            lse_k = logits.logsumexp(-1)
            ce[k, at] = lse_k - _pick(logits, targets[at])
            # Σ p (l − l') − (lse − lse'): differences first, so that nearly equal streams do not cancel to noise.
            gap = torch.sub(reference, logits, out=logits).mul_(probabilities)
            kl[k, at] = gap.sum(-1) - (lse - lse_k)
    ce, kl = ce.reshape(-1, *shape), kl.reshape(-1, *shape)
    return Losses(ce[0], list(ce[1:]), list(kl[1:]))


@torch.no_grad()
def log_probabilities(head: Head, hidden: Tensor) -> Tensor:
    """[T, V] next-token log-probabilities of one context's final hidden states [T, d]."""
    return head(hidden).log_softmax(-1)


def _pick(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets[:, None])[:, 0]


def _rows_per_chunk(head: Head, hidden: Tensor) -> int:
    vocabulary = head(hidden[:1, :1]).shape[-1]
    return max(1, _CHUNK_BYTES[hidden.device.type if hidden.device.type == "cuda" else "cpu"] // (4 * vocabulary))
