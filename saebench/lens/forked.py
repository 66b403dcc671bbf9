"""Results of edited copies: logits, log-probabilities and KL at the wanted positions, computed from hidden states on demand."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saebench.lens.model import Model

# Rows whose logits over the whole vocabulary exist at once.
_ROWS = 64


@dataclass(frozen=True)
class Forked:
    """R edited copies beside the clean stream of their contexts, at P positions each.

    A copy's clean stream ran in the same batch as the copy, so an edit that changes nothing leaves every bit. Logits of the
    whole vocabulary are computed for a few rows at a time, never for all.

    Attributes:
        hidden, clean: [R, P, d] final hidden states (after the last norm) of the copies and of their contexts.
    """

    model: Model
    hidden: Tensor
    clean: Tensor

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def finite(self) -> Tensor:
        """[R] bool, whether every hidden state of a copy is finite. The other copies' results are NaN."""
        return torch.isfinite(self.hidden).flatten(1).all(1)

    def logits(self, tokens: Tensor, *, clean: bool = False) -> Tensor:
        """Float32 logits [R, P, n] of some tokens.

        Args:
            tokens: [n] the same for every copy, or [R, n] each copy's own.
            clean: those of the clean stream.
        """
        hidden = self.clean if clean else self.hidden
        if tokens.ndim == 1:
            return self.model.logits(hidden, tokens)
        rows = [self.model.logits(h, own) for h, own in zip(hidden, tokens, strict=True)]
        return torch.stack(rows)

    def log_probabilities(self, tokens: Tensor, *, clean: bool = False) -> Tensor:
        """Float64 next-token log-probabilities [R, P, n] of some tokens; arguments as for `logits`."""
        hidden = self.clean if clean else self.hidden
        own = tokens.expand(len(hidden), -1)
        out = []
        for rows, wanted in self._blocks(hidden, own):
            logits = self.model.logits(rows).double()
            out.append(logits.gather(1, wanted) - logits.logsumexp(1, keepdim=True))
        return torch.cat(out).reshape(*hidden.shape[:2], own.shape[1])

    def kl(self) -> Tensor:
        """KL(clean ‖ edited) of the next-token distribution, float64 nats, [R, P]."""
        out = []
        width = self.hidden.shape[-1]
        both = zip(self.clean.reshape(-1, width).split(_ROWS), self.hidden.reshape(-1, width).split(_ROWS), strict=True)
        for clean, edited in both:
            reference, logits = self.model.logits(clean).double(), self.model.logits(edited).double()
            # Σ p (l − l') − (lse − lse'): differences first, so that nearly equal streams do not cancel to noise.
            gap = (reference.softmax(1) * (reference - logits)).sum(1)
            out.append(gap - (reference.logsumexp(1) - logits.logsumexp(1)))
        return torch.cat(out).reshape(self.hidden.shape[:2])

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Clean and edited logits [P, V], float32, copy by copy."""
        for clean, edited in zip(self.clean, self.hidden, strict=True):
            yield self.model.logits(clean), self.model.logits(edited)

    def _blocks(self, hidden: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        rows = hidden.reshape(-1, hidden.shape[-1])
        wanted = tokens.repeat_interleave(hidden.shape[1], 0)
        yield from zip(rows.split(_ROWS), wanted.split(_ROWS), strict=True)
