"""The lens: experiments on the language model at an SAE's hook point, for metrics that choose them from data first."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from saebench.errors import SaebenchError, is_out_of_memory
from saebench.hookpoint import HookPoint
from saebench.lens import generation
from saebench.lens.contexts import Contexts, Positions, TokenIds
from saebench.lens.forked import Forked
from saebench.lens.model import Activations, Change, Copy, Model
from saebench.lens.units import Progress, map_units

T = TypeVar("T")
# Tokens of a batch (copies and contexts together) before anything is known about memory.
_TOKENS = {"cpu": 4096, "cuda": 32768}


class Lens:
    """A language model at the hook points of one SAE.

    Contexts are tensors [N, T] of token ids or lists of unequal length; they are padded on the right, which changes no
    result. Batches are fitted to memory: halved when it runs out, and that small from then on. Results do not depend on the batch
    size beyond the rounding inside the model.
    """

    def __init__(
        self,
        model: Model,
        read: HookPoint,
        write: HookPoint | None = None,
        *,
        work: Path | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            model: a `saebench.subject.Subject`.
            read, write: the hook points that the SAE reads and writes; the same one unless it is a transcoder.
            work: folder of finished `units`; it must belong to this SAE, model and task. None keeps nothing.
            batch_size: copies (or contexts) a batch; by default fitted.
            progress: is informed of finished `units`.

        Raises:
            UsageError: the model has no such hook point.
        """
        self.model = model
        self.read, self.write = read, write or read
        model.require(self.read)
        model.require(self.write)
        self.work, self.progress = work, progress
        self._batch = batch_size
        self._tokens = _TOKENS["cuda" if model.device.type == "cuda" else "cpu"]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""
        return self.model.vocabulary

    def capture(self, token_ids: TokenIds) -> Activations:
        """Activations of N contexts, [N, T, d]. Those at padded positions are undefined."""
        contexts = self._contexts(token_ids)
        width = contexts.token_ids.shape[1]

        def run(rows: Tensor) -> tuple[Tensor, Tensor]:
            x_read, x = self.model.capture(contexts.token_ids[rows], self.read, self.write)
            return x_read.float(), x.float()

        parts = self._in_batches(torch.arange(len(contexts)), width, run)
        every = torch.arange(len(contexts), device=self.device)
        x_read, x = (torch.cat([part[side] for part in parts]) for side in (0, 1))
        same = self.read == self.write
        return Activations(x, x if same else x_read, every, torch.arange(width, device=self.device))

    def fork(self, token_ids: TokenIds, edit: Change, *, source: Tensor | None = None, at: Positions = None) -> Forked:
        """Run any number of edited copies of contexts, which share the layers below the hook point.

        Args:
            token_ids: N contexts.
            edit: maps the activations of some copies to the rows that replace them at the hook point. Called batch by batch.
            source: [R] the context of each copy, in any order; by default one copy of each context.
            at: positions of the results, by default the last token (see `Positions`).

        Raises:
            UsageError: a context that is empty or too long, a position outside its context.
            SaebenchError: not even one copy fits into memory.
        """
        contexts = self._contexts(token_ids)
        source = torch.arange(len(contexts)) if source is None else torch.as_tensor(source)
        source = source.to(self.device)
        positions = contexts.positions(at, source)
        # Copies of a context run side by side, and contexts of one length, which saves padding.
        order = torch.argsort(contexts.lengths[source] * len(contexts) + source, stable=True)

        def run(rows: Tensor) -> tuple[Tensor, Tensor]:
            return self._fork_batch(contexts, edit, rows, source[rows], positions[rows])

        parts = self._in_batches(order, contexts.token_ids.shape[1], run)
        back = torch.argsort(order)
        edited, clean = (torch.cat([part[side] for part in parts])[back] for side in (0, 1))
        return Forked(self.model, edited, clean)

    def _fork_batch(
        self, contexts: Contexts, edit: Change, rows: Tensor, source: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Final hidden states [n, P, d] of some copies, and of their contexts."""
        distinct, local = torch.unique_consecutive(source, return_inverse=True)
        token_ids = contexts.take(distinct)
        steps = torch.arange(token_ids.shape[1], device=self.device)

        def splice(x_read: Tensor, x: Tensor) -> list[Copy]:
            own = x.float()[local]
            read = own if self.read == self.write else x_read.float()[local]
            return [Copy(edit(Activations(own, read, rows, steps)), local)]

        clean, (edited,) = self.model.fork(token_ids, self.read, self.write, splice, local)
        at = positions[..., None].expand(-1, -1, clean.shape[-1])
        return edited.gather(1, at), clean[local].gather(1, at)

    def logits(self, token_ids: TokenIds, *, at: Positions = None, tokens: Tensor | None = None) -> Tensor:
        """Float32 logits [N, P, n] of the untouched model.

        Args:
            at: positions, by default the last token.
            tokens: [n] token ids, by default the whole vocabulary: n = V.
        """
        contexts = self._contexts(token_ids)
        positions = contexts.positions(at, torch.arange(len(contexts), device=self.device))

        def run(rows: Tensor) -> Tensor:
            hidden = self.model.hidden(contexts.take(rows))
            wanted = positions[rows]
            chosen = hidden.gather(1, wanted[..., None].expand(-1, -1, hidden.shape[-1]))
            return self.model.logits(chosen, slice(None) if tokens is None else tokens)

        return torch.cat(self._in_batches(torch.arange(len(contexts)), contexts.token_ids.shape[1], run))

    def gradient(
        self,
        token_ids: TokenIds,
        scalar: Callable[[Tensor], Tensor],
        *,
        at: Positions = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Gradient [N, T, d] of a scalar of the output with respect to the activation at the hook point it writes.

        Args:
            scalar: logits [n, P, V or len(tokens)] of n contexts -> one value for each context, [n], or their sum.
            at, tokens: the logits that `scalar` is given, as for `logits`.
        """
        contexts = self._contexts(token_ids)
        positions = contexts.positions(at, torch.arange(len(contexts), device=self.device))

        def run(rows: Tensor) -> Tensor:
            def value(hidden: Tensor) -> Tensor:
                chosen = hidden.gather(1, positions[rows][..., None].expand(-1, -1, hidden.shape[-1]))
                return scalar(self.model.logits(chosen, slice(None) if tokens is None else tokens)).sum()

            return self.model.differentiate(contexts.token_ids[rows], self.write, value)

        return torch.cat(self._in_batches(torch.arange(len(contexts)), contexts.token_ids.shape[1], run))

    def generate(
        self,
        token_ids: TokenIds,
        edit: Change | None = None,
        *,
        source: Tensor | None = None,
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[int] = (),
    ) -> list[list[int]]:
        """Continuations of prompts, with a KV cache; the edit acts on the prompt and on every new token.

        Args:
            edit: as for `fork`; it sees the tokens of one step at a time. None leaves the model unchanged.
            source: [R] the prompt of each copy; by default one copy of each prompt.
            tokens: new tokens at most.
            temperature: 0 takes the likeliest token; else tokens are sampled, each copy from a stream of its own.
            seed: of the sampling.
            stop: token ids that end a continuation (and belong to it).

        Raises:
            UsageError: prompt and continuation exceed the model's positions.
            NonFiniteError: an edit made the logits of a copy non-finite.
        """
        contexts = self._contexts(token_ids, tokens)
        source = torch.arange(len(contexts)) if source is None else torch.as_tensor(source)
        source = source.to(self.device)
        how = generation.Sampling(tokens, temperature, seed, frozenset(stop))
        out: list[list[int]] = [[] for _ in source]
        for length in contexts.lengths[source].unique():  # unpadded, so that positions need no mask
            mine = (contexts.lengths[source] == length).nonzero()[:, 0]

            def run(rows: Tensor, length: int = int(length)) -> list[list[int]]:
                ids = contexts.token_ids[source[rows], :length]
                return generation.continuations(self.model, ids, rows, self.read, self.write, edit, how)

            parts = self._in_batches(mine, int(length) + tokens, run)
            for row, found in zip(mine.tolist(), [one for part in parts for one in part], strict=True):
                out[row] = found
        return out

    def units(self, key: str, items: Sequence[T], compute: Callable[[T], Any]) -> list[Any]:
        """`compute(item)` for every item, resumable: finished items survive a kill, and the rest is bit-identical.

        Args:
            key: names the map within this metric; change it when `compute` changes.
            items: plain JSON values that identify the work (a latent's number).
            compute: returns plain JSON values: numbers, text, lists, dictionaries.

        Raises:
            NonFiniteError: a result holds NaN or infinity.
        """
        return map_units(self.work, key, items, compute, self.progress)

    # --- batches ------------------------------------------------------------------------------------------------------

    def _contexts(self, token_ids: TokenIds, new: int = 0) -> Contexts:
        return Contexts.of(token_ids, self.device, self.vocabulary, self.model.longest, new)

    def _in_batches(self, rows: Tensor, width: int, run: Callable[[Tensor], T]) -> list[T]:
        """`run` of consecutive parts of `rows`, halved when memory runs out."""
        rows = rows.to(self.device)
        out, done = [], 0
        while done < len(rows):
            size = self._batch or max(1, self._tokens // width)
            try:
                out.append(run(rows[done : done + size]))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = min(size, len(rows) - done)
                if size == 1:
                    raise SaebenchError(
                        f"not even one copy of {width} tokens fits into the memory of {self.device}: "
                        "shorten the contexts, or pass --dtype bfloat16"
                    ) from error
                self._batch, self._tokens = (size // 2 if self._batch else None), size // 2 * width
                torch.cuda.empty_cache()
                continue
            done += size
        return out
