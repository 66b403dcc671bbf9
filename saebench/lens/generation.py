"""Continuations token by token, with a KV cache and an edit at every step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saebench.errors import NonFiniteError
from saebench.hookpoint import HookPoint
from saebench.lens.model import Activations, Change, Model
from saebench.streams import generator


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; see `Lens.generate`."""

    tokens: int
    temperature: float
    seed: int
    stop: frozenset[int]


@torch.no_grad()
def continuations(
    model: Model, token_ids: Tensor, rows: Tensor, read: HookPoint, write: HookPoint, edit: Change | None, how: Sampling
) -> list[list[int]]:
    """New tokens of each prompt [n, T]; `rows` [n] are the numbers of the copies.

    Raises:
        NonFiniteError: the logits of a copy are not finite.
    """
    # A copy draws from a stream of its own, so that its text does not depend on the other copies of its batch.
    streams = [generator(f"lens/generate/{int(row)}", how.seed) for row in rows] if how.temperature else []
    start, cache, new = 0, None, token_ids
    out: list[list[int]] = [[] for _ in rows]
    for _ in range(how.tokens):
        position = torch.arange(start, start + new.shape[1], device=new.device)

        def change(x_read: Tensor, x: Tensor, position: Tensor = position) -> Tensor:
            return x if edit is None else edit(Activations(x.float(), x_read.float(), rows, position))

        hidden, cache = model.step(new, cache, read, write, change)
        logits = model.logits(hidden[:, -1])
        _require_finite(logits, rows)
        chosen = logits.argmax(1) if not streams else _sample(logits / how.temperature, streams)
        for own, token in zip(out, chosen.tolist(), strict=True):
            if not (own and own[-1] in how.stop):
                own.append(token)
        if all(own[-1] in how.stop for own in out):
            break
        start, new = start + new.shape[1], chosen[:, None]
    return out


def _sample(logits: Tensor, streams: list[torch.Generator]) -> Tensor:
    """[n] one token a row, by inverting the cumulative distribution at one uniform number."""
    cumulative = logits.double().softmax(1).cumsum(1)
    uniform = torch.stack([torch.rand(1, generator=stream, dtype=torch.float64) for stream in streams])
    found = torch.searchsorted(cumulative, uniform.to(logits.device) * cumulative[:, -1:], right=True)
    return found[:, 0].clamp_max(logits.shape[1] - 1)


def _require_finite(logits: Tensor, rows: Tensor) -> None:
    finite = torch.isfinite(logits).all(1)
    if not bool(finite.all()):
        row = int(rows[~finite][0])
        raise NonFiniteError(f"the edit of copy {row} makes the model's logits non-finite: take a smaller strength")
