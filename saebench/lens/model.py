"""The language model as the lens sees it: a place to read and replace activations (`saebench.subject.Subject` is one)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from saebench.hookpoint import HookPoint


@dataclass(frozen=True)
class Copy:
    """One alternative stream: the rows that replace the model's own activations at the hook point.

    Attributes:
        rows: [R, T, d] activations.
        source: [R] the context in the batch whose tokens each row has.
    """

    rows: Tensor
    source: Tensor


Splice = Callable[[Tensor, Tensor], list[Copy]]


@dataclass(frozen=True)
class Activations:
    """Activations of R copies at the hook points, as an edit receives them.

    Attributes:
        x: [R, T, d_out] float32, at the place that the SAE writes.
        x_read: [R, T, d_in] float32, at the place that the SAE reads; `x` itself unless the SAE is a transcoder.
        copy: [R] int64, the number of each copy in the whole request.
        position: [T] int64, the position of each token in its context.
    """

    x: Tensor
    x_read: Tensor
    copy: Tensor
    position: Tensor


# Maps the activations of some copies to the rows [R, T, d_out] that replace `x`. Each row may depend on its own copy only.
Change = Callable[[Activations], Tensor]


class Model(Protocol):
    """The forward passes that a lens needs."""

    @property
    def name(self) -> str:
        """The model's id, for messages."""

    @property
    def longest(self) -> int | None:
        """Positions the model has been made for; None if its config sets no limit."""

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""

    @property
    def device(self) -> torch.device: ...

    def require(self, hook: HookPoint) -> None:
        """Raise UsageError unless the model has the hook point."""

    def logits(self, hidden: Tensor, tokens: slice | Tensor = ...) -> Tensor:
        """Float32 logits [..., n] of final hidden states [..., d]."""

    def hidden(self, token_ids: Tensor) -> Tensor:
        """Final hidden states [B, T, d] of the untouched model, after the last norm."""

    def capture(self, token_ids: Tensor, read: HookPoint, write: HookPoint | None = None) -> tuple[Tensor, Tensor]:
        """Activations [B, T, d] at both hook points."""

    def fork(
        self, token_ids: Tensor, read: HookPoint, write: HookPoint, splice: Splice, copies: int | Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Final hidden states of the clean stream and of every copy."""

    def differentiate(self, token_ids: Tensor, write: HookPoint, scalar: Callable[[Tensor], Tensor]) -> Tensor:
        """[B, T, d] gradient of `scalar(final hidden states)` with respect to the activations at `write`."""

    def step(
        self,
        token_ids: Tensor,
        cache: Any,
        read: HookPoint,
        write: HookPoint,
        change: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Any]:
        """Final hidden states [B, t, d] of further tokens, with `change(x_read, x)` at `write`; and the grown KV cache."""
