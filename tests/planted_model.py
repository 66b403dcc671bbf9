"""A language model whose output is known in closed form: each token is a direction, the hidden state is a sum of directions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench.hookpoint import HookPoint
from saebench.lens import Lens
from saebench.lens.model import Splice
from saebench.metric import Batch
from saebench.sae import SAE, ReLU

PLACE = HookPoint(0, "resid_post")


class PlantedModel:
    """Activation of token v = row v of `embedding`; final hidden state = the activation, or the sum of all so far.

    Attributes:
        unembedding: [V, d] logits = hidden @ unembeddingᵀ + bias.
        remembers: whether a position's hidden state holds the activations of earlier positions too.
    """

    name, longest, device = "planted", None, torch.device("cpu")

    def __init__(self, embedding: Tensor, unembedding: Tensor, *, bias: Tensor | None = None, remembers: bool = False):
        self.embedding, self.unembedding, self.remembers = embedding, unembedding, remembers
        self.bias = torch.zeros(len(unembedding)) if bias is None else bias
        self.vocabulary = len(unembedding)

        self.work = {"whole": 0, "above": 0, "logits": 0}  # as `LensWork` counts

    def require(self, hook: HookPoint) -> None: ...

    def logits(self, hidden: Tensor, tokens: slice | Tensor = slice(None)) -> Tensor:
        if isinstance(tokens, slice):
            self.work["logits"] += hidden[..., 0].numel()
        return hidden @ self.unembedding[tokens].T + self.bias[tokens]

    def hidden(self, token_ids: Tensor) -> Tensor:
        return self._finish(self.embedding[token_ids])

    def _finish(self, x: Tensor) -> Tensor:
        return x.cumsum(1) if self.remembers else x

    def capture(self, token_ids: Tensor, read: HookPoint, write: HookPoint | None = None) -> tuple[Tensor, Tensor]:
        x = self.embedding[token_ids]
        return x, x

    def fork(
        self, token_ids: Tensor, read: HookPoint, write: HookPoint, splice: Splice, copies: int | Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        x = self.embedding[token_ids]
        copies = splice(x, x)
        self.work["whole"] += token_ids.numel()
        self.work["above"] += sum(copy.rows[..., 0].numel() for copy in copies)
        return self._finish(x), [self._finish(copy.rows) for copy in copies]

    def differentiate(self, token_ids: Tensor, write: HookPoint, scalar: Callable[[Tensor], Tensor]) -> Tensor:
        raise NotImplementedError

    def step(
        self,
        token_ids: Tensor,
        cache: Any,
        read: HookPoint,
        write: HookPoint,
        change: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Any]:
        assert not self.remembers
        self.work["whole"] += token_ids.numel()
        x = self.embedding[token_ids]
        return change(x, x), cache

    def lens(self, **options: Any) -> Lens:
        return Lens(self, PLACE, **options)


def one_hot_sae(W_dec: Tensor) -> SAE:
    """Latent i is the activation's i-th coordinate where that is positive; it writes row i of `W_dec`."""
    n, d = W_dec.shape
    return SAE(torch.eye(d)[:, :n], W_dec.contiguous(), torch.zeros(n), torch.zeros(d), ReLU(), False)


def rescaled(sae: SAE, factor: float = 10.0) -> SAE:
    """The same function with every other decoder row longer and its latent smaller by a factor."""
    scale = torch.ones(sae.d_sae)
    scale[::2] = factor
    assert isinstance(sae.activation, ReLU)
    return SAE(sae.W_enc / scale, sae.W_dec * scale[:, None], sae.b_enc / scale, sae.b_dec, ReLU(), sae.subtracts_b_dec)


def batch_of(model: PlantedModel, sae: SAE, token_ids: Tensor, rows: list[int], seed: int = 0) -> Batch:
    """The batch of these contexts; one context a document, and token 0 is special."""
    ids = token_ids[rows]
    x, special = model.embedding[ids], ids == 0
    at = np.array(rows)
    return Batch(
        ids,
        special,
        ~special,
        at,
        at,
        torch.arange(ids.shape[1]),
        x.mean((0, 1)),
        x,
        sae.encode(x),
        sae(x),
        _x_read=x,
        seed=seed,
    )
