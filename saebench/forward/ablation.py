"""Losses with the hook point zeroed, and with the calibration mean in its place: the references of loss_recovered.

Neither depends on an SAE, so they are computed once for a (model, hook point, text) and cached. On the residual stream
they hardly depend on the text either: once every position holds the same vector (and BOS its own), nothing of the context
is left above the hook point, and one row of the model serves all contexts. Only a context that keeps another position's
own activation (an unscored outlier) needs a row to itself.

A metric's own edit that zeroes every position runs a row per context. Inside a block its losses are these bit for bit; on the
residual stream they agree to 1e-6, because the shared row goes through the output layer in a matrix product of another shape
(tests/test_edits.py checks both).
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saebench.cache import load_from_cache, save_in_cache
from saebench.corpus import Contexts
from saebench.forward.calibration import CACHE_VERSION, Calibration
from saebench.forward.losses import log_probabilities, next_tokens, spliced_losses
from saebench.hookpoint import HookPoint
from saebench.subject import Copy, Subject


class Ablations:
    """Zero- and mean-ablated cross-entropies of one text at one hook point.

    Attributes:
        cached: whether every loss is known before the pass begins.
    """

    def __init__(
        self, subject: Subject, contexts: Contexts, write: HookPoint, calibration: Calibration, cache: Path
    ) -> None:
        self._subject = subject
        self._write = write
        self._mean = calibration.mean
        self._shared = write.site in ("resid_pre", "resid_post")
        mean = hashlib.sha256(calibration.mean.cpu().numpy().tobytes()).hexdigest()
        key = "|".join(
            (
                CACHE_VERSION,
                subject.loaded.sha256,
                subject.dtype,
                str(write),
                repr(calibration.threshold),
                mean,
                contexts.fingerprint(),
            )
        )
        self._path = cache / "ablations" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        kept = load_from_cache(self._path)
        if kept is not None and not _fits(kept, contexts.token_ids.shape):
            kept = None
        self.cached = kept is not None
        if kept is not None:
            self._losses = kept
            return
        self._losses = {n: torch.full(contexts.token_ids.shape, torch.nan) for n in ("zero", "mean")}
        if self._shared:
            self._first = int(contexts.token_ids[0, 0])
            self._keeps_first = bool(contexts.special[0, 0])
            self._tables, self._shared = self._one_row(torch.from_numpy(contexts.token_ids[:1]).to(subject.device))

    def _one_row(self, token_ids: Tensor) -> tuple[dict[str, Tensor], bool]:
        """[T, V] log-probabilities above a stream that holds 0, or the mean, everywhere; and whether they serve all contexts.

        They do not in a model whose upper layers look at the tokens again (Gemma 3n), so other tokens are run beside these.
        """
        other = (token_ids + 1) % self._subject.model.get_input_embeddings().weight.shape[0]
        if self._keeps_first:
            other[:, 0] = token_ids[:, 0]
        token_ids = torch.cat([token_ids, other])
        every = torch.arange(2, device=token_ids.device)

        def splice(_: Tensor, x: Tensor) -> list[Copy]:
            mean = self._mean.to(x.dtype).expand_as(x).clone()
            if self._keeps_first:
                mean[:, 0] = x[:, 0]
            return [Copy(torch.zeros_like(x), every), Copy(mean, every)]

        _, (zero, mean) = self._subject.fork(token_ids, self._write, self._write, splice, copies=2)
        head = self._subject
        tables = {"zero": log_probabilities(head, zero[0]), "mean": log_probabilities(head, mean[0])}
        return tables, self._subject.close(zero[0], zero[1]) and self._subject.close(mean[0], mean[1])

    def _alone(self, token_ids: Tensor, scored: Tensor) -> Tensor:
        """Which contexts of a batch need a mean-ablated row of their own: [n] indices."""
        usual = torch.ones_like(scored)
        usual[:, 0] = not self._keeps_first
        same_start = (token_ids[:, 0] == self._first) | ~torch.tensor(self._keeps_first, device=scored.device)
        return (~((scored == usual).all(1) & same_start)).nonzero()[:, 0]

    def copies(self, x: Tensor, token_ids: Tensor, scored: Tensor) -> list[Copy]:
        """The streams that this batch must run for the losses it lacks; at most two, none when cached."""
        if self.cached:
            return []
        mean = torch.where(scored[..., None], self._mean.to(x.dtype), x)
        every = torch.arange(len(x), device=x.device)
        if not self._shared:
            return [Copy(torch.zeros_like(x), every), Copy(mean, every)]
        alone = self._alone(token_ids, scored)
        return [Copy(mean[alone], alone)] if len(alone) else []

    @property
    def most_copies(self) -> int:
        """How many copies `copies` returns at a hook point inside a block, where the number must be known beforehand."""
        return 0 if self.cached else 2

    def losses(
        self, rows: np.ndarray, hidden: list[Tensor], token_ids: Tensor, scored: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(zero, mean) cross-entropies [B, T] of a batch, from the final hidden states of the copies it asked for.

        Args:
            rows: which contexts these are: indices into the text.
        """
        if not self.cached:
            zero, mean = self._compute(hidden, token_ids, scored)
            self._losses["zero"][rows] = zero.cpu()
            self._losses["mean"][rows] = mean.cpu()
        index = torch.from_numpy(rows)
        device = token_ids.device
        return self._losses["zero"][index].to(device), self._losses["mean"][index].to(device)

    def _compute(self, hidden: list[Tensor], token_ids: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
        head = self._subject
        if not self._shared:
            zero, mean = (spliced_losses(head, h, [], token_ids, scored).clean for h in hidden)
            return zero, mean
        places = torch.arange(token_ids.shape[1], device=token_ids.device)
        zero, mean = (-self._tables[name][places, next_tokens(token_ids)] for name in ("zero", "mean"))
        if hidden:
            alone = self._alone(token_ids, scored)
            mean[alone] = spliced_losses(head, hidden[0], [], token_ids[alone], scored[alone]).clean
        return zero, mean

    def keep(self) -> None:
        """Cache the losses, once every context has been through."""
        if not self.cached and not any(bool(t.isnan().any()) for t in self._losses.values()):
            save_in_cache(self._path, self._losses)


def _fits(kept: dict[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Whether cached losses are those of a text of this shape."""
    return set(kept) == {"zero", "mean"} and all(
        t.shape == shape and t.dtype == torch.float32 and not bool(t.isnan().any()) for t in kept.values()
    )
