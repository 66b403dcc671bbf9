"""The interface of activation sources: a language model at a hook point, a file, or a planted model."""

from typing import Protocol

import torch
from torch import Tensor

from saebench.batch import Truth
from saebench.hookpoint import HookPoint
from saebench.models import LoadedModel


class Source(Protocol):
    """Activations for rows of token ids. Only a source that `predicts` (`Subject`) can be forked and has losses."""

    @property
    def loaded(self) -> LoadedModel:
        """Identity, and a language model's tokenizer."""
        ...

    @property
    def kind(self) -> str:
        """The model's type, "planted" or "activations"."""
        ...

    @property
    def predicts(self) -> bool:
        """Whether there are next-token predictions, and so losses and a lens."""
        ...

    @property
    def grid(self) -> tuple[int, int] | None:
        """Height and width of a context's positions; None unless they form an image."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> str: ...

    @property
    def forks(self) -> bool: ...

    def require(self, hook: HookPoint) -> None:
        """Raise UsageError unless the source has the hook point."""
        ...

    def check(self, hook: HookPoint) -> None:
        """Prove on a short input that the hook point can be read and written."""
        ...

    def capture(self, token_ids: Tensor, read: HookPoint, write: HookPoint) -> tuple[Tensor, Tensor]:
        """Activations [B, T, d] at two hook points."""
        ...

    def truth(self, token_ids: Tensor) -> Truth | None:
        """Planted features of these rows; None without planted features."""
        ...
