"""One batch of a pass, as a metric receives it: contexts with activations, latents, losses and its own edits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from saebench.labels import Labels
from saebench.sae import Latents

T = TypeVar("T")

# Parts of a batch that a metric may need. If no metric needs `token_losses`, the model stops at the hook point. `labels` exist
# in tasks of labelled documents only, `token_losses` in tasks of contexts, `truth` on a planted model, `grid` for images.
NEEDS = frozenset({"x", "x_read", "latents", "reconstruction", "token_losses", "labels", "truth", "grid"})


@dataclass(frozen=True)
class TokenLosses:
    """Next-token losses in nats, float32, [B, T], with x left alone, replaced by x̂, by 0 and by the calibration mean.

    Attributes:
        predicted: [B, T] bool, scored positions that have a next token; the four cross-entropies are defined there only.
        kl: KL(clean ‖ spliced) of the next-token distribution, at every scored position.
    """

    clean: Tensor
    spliced: Tensor
    zero: Tensor
    mean: Tensor
    kl: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class Truth:
    """The planted features behind the activations, in a run on a planted model.

    Attributes:
        features: [B, T, N] float32, non-negative; a feature is active where it is above 0.
        directions: [N, d] unit rows: x = features @ directions + a constant.
        parent: [N] int64, for each feature the one without which it is never active; −1 for none.
    """

    features: Tensor
    directions: Tensor
    parent: Tensor


@dataclass(frozen=True)
class Edit:
    """An alternative stream: activations that replace the model's own at the hook point in a further forward pass.

    Attributes:
        name: distinct among a metric's edits of one batch.
        rows: [R, T, d_out] activations, at every position (special and unscored ones too).
        source: [R] int64, the context of the batch that each row belongs to; None: one row per context, in order.
        hidden: whether `Edited.hidden` is wanted.
    """

    name: str
    rows: Tensor
    source: Tensor | None = None
    hidden: bool = False


@dataclass(frozen=True)
class Edited:
    """The model's predictions under an edit: float32 [R, T], nats, at the scored positions of each row's context, 0 elsewhere.

    Attributes:
        source: [R] the context of each row.
        cross_entropy: of the next token; undefined at the last position of a context, which has none.
        kl: KL(clean ‖ edited) of the next-token distribution.
        hidden: [R, T, d] final hidden states (after the last norm), where the edit set `hidden`.
    """

    source: Tensor
    cross_entropy: Tensor
    kl: Tensor
    hidden: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """B contexts of T tokens. Every tensor lies on the model's device.

    Attributes:
        token_ids: [B, T] int64
        special: [B, T] bool, BOS and other special tokens: never scored, never spliced
        scored: [B, T] bool, the tokens that scores are made of; values at other tokens must not enter a score
        context_id: [B] int64 (numpy), the context's number in the task
        document_id: [B] int64 (numpy), the document that the context was cut from: the cluster of every interval
        position: [T] int64, positions in the context
        calibration_mean: [d_out] float32, the mean activation of the calibration contexts
        typical_norm: the median norm of x over the calibration contexts: a unit that does not depend on the SAE
        x: [B, T, d_out] float32, the activations that the SAE reconstructs (a transcoder's output)
        latents: B·T rows, shape (B, T, d_sae)
        reconstruction: [B, T, d_out] float32, x̂
        token_losses: see TokenLosses
        x_read: [B, T, d_in] float32, the activations that the SAE reads; only a transcoder's differ from x
        read_mean: [d_in] float32, the mean of x_read over the calibration sample
        labels: of the B documents, in a task of labelled documents
        edited: by name, the predictions under each edit of the metric for this batch
        truth: see Truth; in a run on a planted model
        grid: height and width of the T positions, of images in a file of activations
        seed: of the run, for a metric that is `seeded`; 0 for the others
    """

    token_ids: Tensor
    special: Tensor
    scored: Tensor
    context_id: np.ndarray
    document_id: np.ndarray
    position: Tensor
    calibration_mean: Tensor | None = None
    _x: Tensor | None = None
    _latents: Latents | None = None
    _reconstruction: Tensor | None = None
    _token_losses: TokenLosses | None = None
    _x_read: Tensor | None = None
    read_mean: Tensor | None = None
    _labels: Labels | None = None
    seed: int = 0
    _edited: Mapping[str, Edited] | None = None
    _truth: Truth | None = None
    _grid: tuple[int, int] | None = None
    typical_norm: float | None = None

    @property
    def x(self) -> Tensor:
        return _given(self._x, "x")

    @property
    def latents(self) -> Latents:
        return _given(self._latents, "latents")

    @property
    def reconstruction(self) -> Tensor:
        return _given(self._reconstruction, "reconstruction")

    @property
    def token_losses(self) -> TokenLosses:
        return _given(self._token_losses, "token_losses")

    @property
    def x_read(self) -> Tensor:
        return _given(self._x_read, "x_read")

    @property
    def labels(self) -> Labels:
        return _given(self._labels, "labels")

    def has(self, part: str) -> bool:
        """Whether the batch carries an optional part, like `token_losses`."""
        return getattr(self, f"_{part}") is not None

    @property
    def grid(self) -> tuple[int, int]:
        return _given(self._grid, "grid")

    @property
    def truth(self) -> Truth:
        return _given(self._truth, "truth")

    @property
    def edited(self) -> Mapping[str, Edited]:
        if self._edited is None:
            raise AttributeError("this batch carries no edits: define `edits` and set the metric's `edit_rows`")
        return self._edited

    def per_context(self, values: Tensor, mask: Tensor | None = None) -> np.ndarray:
        """Sum a per-token quantity [B, T] over the scored tokens (or over `mask`) of each context: float64 [B]."""
        mask = self.scored if mask is None else mask
        return torch.where(mask, values, 0).sum(-1, dtype=torch.float64).cpu().numpy()


def _given(value: T | None, name: str) -> T:
    if value is None:
        raise AttributeError(f"this batch carries no {name}: add '{name}' to the metric's `needs`")
    return value
