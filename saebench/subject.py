"""The language model under study: run up to a hook point, or forked at it.

Forking is what makes one pass serve every SAE. At the hook point, h [B, T, d] becomes [h; copy₁; …; copyₙ] along the batch,
so the layers below run once and only those above run n + 1 times. No model code is re-implemented: forward hooks do it, and
any Hugging Face causal LM works. What does not survive a fork (checked on a few tokens before the pass) runs copy by copy.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from saebench.arithmetic.allocator import keep_freed_memory
from saebench.arithmetic.linear import linear, use_onednn
from saebench.batch import Truth
from saebench.errors import SaebenchError, UsageError
from saebench.hookpoint import MODULES, MOVED_ON_GEMMA, SANDWICH, HookPoint
from saebench.lens.model import Copy as Copy
from saebench.lens.model import Splice
from saebench.models import LoadedModel, longest_context
from saebench.module_hooks import after, before, find_blocks


class _Stop(Exception):
    """Raised by a hook to end a forward pass early; never leaves this module."""


@dataclass
class _Run:
    """What the hooks of one forward pass share."""

    size: int
    read: Tensor | None = None
    write: Tensor | None = None
    base: Tensor | None = None
    copies: list[Copy] = field(default_factory=list)
    source: Tensor | None = None


class Subject:
    """A loaded language model, seen as a place to read and replace activations.

    Attributes:
        loaded: model, tokenizer and identity.
        device: where it runs.
        forks: False once a check has shown that this model does not survive a fork.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.model = loaded.model
        self.device = next(self.model.parameters()).device
        self.forks = True
        if self.device.type == "cpu":
            keep_freed_memory()
            use_onednn(self.model)
        self.blocks = find_blocks(self.model)
        self._sites = MODULES.get(self.model.config.model_type, {})
        self._softcap = getattr(self.model.config, "final_logit_softcapping", None)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def dtype(self) -> str:
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    predicts = True
    grid: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """The model's type, for records."""
        return str(self.model.config.model_type)

    def truth(self, token_ids: Tensor) -> Truth | None:
        """Planted features behind the activations: a language model has none."""
        return None

    def require(self, hook: HookPoint) -> None:
        """Raise UsageError unless this model has the hook point."""
        if not 0 <= hook.layer < self.n_layers:
            raise UsageError(f"hook point {hook} is not in {self.loaded.id}, which has layers 0 to {self.n_layers - 1}")
        if hook.site not in ("resid_pre", "resid_post") and hook.site not in self._sites:
            raise UsageError(
                f"hook point {hook} is not known for model type '{self.model.config.model_type}': "
                "known there are blocks.L.hook_resid_pre and blocks.L.hook_resid_post"
                + "".join(f", {site}" for site in self._sites)
            )

        if self._sites is SANDWICH and hook.as_module and hook.site in MOVED_ON_GEMMA:
            raise UsageError(
                f"{self.model.config.model_type} normalises what attention and the MLP add, so the module's name is another "
                f"place than {hook}: use blocks.{hook.layer}.hook_attn_out, .hook_mlp_out or .hook_resid_mid if that is meant"
            )

    # --- the two ways to run ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def capture(self, token_ids: Tensor, read: HookPoint, write: HookPoint | None = None) -> tuple[Tensor, Tensor]:
        """Activations [B, T, d] at two hook points (the same one by default), stopping after the second.

        Args:
            token_ids: [B, T] int64, no padding.
        """
        write = write or read
        run = _Run(len(token_ids))

        def stop(x_read: Tensor, x_write: Tensor) -> list[Copy]:
            raise _Stop

        with self._hooked(run, read, write, stop, copies=0), suppress(_Stop):
            self.hidden(token_ids)
        assert run.write is not None
        return (run.write if run.read is None else run.read), run.write

    @torch.no_grad()
    def fork(
        self, token_ids: Tensor, read: HookPoint, write: HookPoint, splice: Splice, copies: int | Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Final hidden states (after the last norm) of the untouched model and of every copy, in one forward pass.

        Args:
            token_ids: [B, T] int64, no padding.
            read, write: where SAEs read and where their output goes.
            splice: (x_read, x_write) -> the copies; called once, with activations [B, T, d] in the model's dtype.
            copies: how many it returns, if each has one row per context, in order; else [R] the context of every row of
                every copy. Needed beforehand at a hook point inside a block, where the block's input forks.

        Returns:
            clean [B, T, d] and, for each copy, [R, T, d].
        """
        if not self.forks:
            return self._separately(token_ids, read, write, splice)
        run = _Run(len(token_ids))
        with self._hooked(run, read, write, splice, copies):
            hidden = self.hidden(token_ids)
        clean, *rest = hidden.split([run.size, *(len(c.rows) for c in run.copies)])
        return clean, list(rest)

    def _separately(
        self, token_ids: Tensor, read: HookPoint, write: HookPoint, splice: Splice
    ) -> tuple[Tensor, list[Tensor]]:
        """The same as `fork`, one plain forward pass per copy: slower, and nothing can go wrong."""
        x_read, x_write = self.capture(token_ids, read, write)
        clean = self.hidden(token_ids)
        out = []
        for copy in splice(x_read, x_write):
            with self._changed(write, partial(_rows_of, copy)):
                out.append(self.hidden(token_ids[copy.source]))
        return clean, out

    def differentiate(self, token_ids: Tensor, write: HookPoint, scalar: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient [B, T, d] of a scalar of the final hidden states with respect to the activations at a hook point.

        Args:
            scalar: final hidden states [B, T, d] -> one number.
        """
        leaves: list[Tensor] = []

        def begin(h: Tensor) -> Tensor:
            leaves.append(h.detach().requires_grad_())
            return leaves[0]

        with torch.enable_grad(), self._changed(write, begin):
            value = scalar(self.hidden(token_ids))
            (gradient,) = torch.autograd.grad(value, leaves)
        return gradient

    @torch.no_grad()
    def step(
        self,
        token_ids: Tensor,
        cache: Any,
        read: HookPoint,
        write: HookPoint,
        change: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Any]:
        """Final hidden states [B, t, d] of further tokens, and the grown KV cache.

        Args:
            token_ids: [B, t] the tokens after those in the cache.
            cache: of the step before; None at the beginning.
            change: (x_read, x) [B, t, d] -> the rows that stand at `write` instead.
        """
        run = _Run(len(token_ids))

        def note(h: Tensor) -> None:
            run.read = h

        def replace(h: Tensor) -> Tensor:
            return change(self._read_of(run, read, write, h), h).to(h.dtype)

        with self._changed(read, note) if read != write else nullcontext(), self._changed(write, replace):
            out = self.model.base_model(input_ids=token_ids, past_key_values=cache, use_cache=True)
        return out.last_hidden_state, out.past_key_values

    @property
    def name(self) -> str:
        return self.loaded.id

    @property
    def longest(self) -> int | None:
        """Positions the model has been made for; None where its config sets no limit."""
        return longest_context(self.model.config)

    @property
    def vocabulary(self) -> int:
        """V, how many logits the model gives."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def logits(self, hidden: Tensor, tokens: slice | Tensor = slice(None)) -> Tensor:
        """Float32 logits [..., V] of final hidden states [..., d], or those of some tokens [..., n]."""
        head = self.model.get_output_embeddings()
        bias = None if head.bias is None else head.bias[tokens]
        logits = linear(hidden.to(head.weight.dtype), head.weight[tokens], bias).float()
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def close(self, a: Tensor, b: Tensor) -> bool:
        """Whether two results of the model are the same but for its rounding."""
        tolerance = 2e-3 if self.dtype == "float32" else 5e-2
        return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())

    # --- trust, but verify --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def check(self, hook: HookPoint) -> None:
        """Prove on 16 tokens that the head is the model's own, and that a fork equals separate passes.

        Sets `forks` to False where it does not.

        Raises:
            SaebenchError: the model does something to its logits that `logits` does not.
        """
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = (torch.arange(16, device=self.device) * 7919 % vocabulary).reshape(2, 8)
        whole = self.model(input_ids=ids, use_cache=False).logits.float()
        if not self.close(self.logits(self.hidden(ids)), whole):
            raise SaebenchError(
                f"{self.loaded.id} (model type '{self.model.config.model_type}') changes its logits after the output layer "
                "in a way saebench does not know; its losses would be wrong"
            )
        every = torch.arange(2, device=self.device)

        def splice(x_read: Tensor, x_write: Tensor) -> list[Copy]:
            return [Copy(x_write, every), Copy(x_write * 0.5, every)]

        apart = self._separately(ids, hook, hook, splice)
        self.forks = True  # or `fork` would run separately and prove itself
        try:
            together = self.fork(ids, hook, hook, splice, copies=2)
        except (RuntimeError, ValueError, TypeError):
            self.forks = False
            return
        pairs = zip((apart[0], *apart[1]), (together[0], *together[1]), strict=True)
        self.forks = all(self.close(a, b) for a, b in pairs)

    # --- hooks --------------------------------------------------------------------------------------------------------

    def hidden(self, token_ids: Tensor) -> Tensor:
        """Final hidden states [B, T, d], after the last norm, of the untouched model."""
        out: Tensor = self.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        return out

    @contextmanager
    def _hooked(
        self, run: _Run, read: HookPoint, write: HookPoint, splice: Splice, copies: int | Tensor
    ) -> Iterator[None]:
        """Install the hooks of one pass, take them off again whatever happens."""
        handles: list[Any] = []

        def as_read(h: Tensor) -> Tensor:
            return self._read_of(run, read, write, h)

        def fork_residual(h: Tensor) -> Tensor:
            run.write = h
            run.copies = splice(as_read(h), h)
            run.source = torch.cat([torch.arange(run.size, device=h.device), *(c.source for c in run.copies)])
            return torch.cat([h, *(c.rows.to(h.dtype) for c in run.copies)])

        def repeat_block_input(h: Tensor) -> Tensor:
            own = torch.arange(run.size, device=h.device)
            run.source = own.repeat(1 + copies) if isinstance(copies, int) else torch.cat([own, copies])
            run.base = h[run.source]
            return run.base

        def replace_slices(h: Tensor) -> Tensor:
            run.write = h[: run.size]
            run.copies = splice(as_read(run.write), run.write)
            return torch.cat([run.write, *(c.rows.to(h.dtype) for c in run.copies)])

        def note(h: Tensor) -> None:
            run.read = h[: run.size]

        try:
            if read != write:
                handles += self._at(read, note, run)
            if write.site in ("resid_pre", "resid_post"):
                handles += self._at(write, fork_residual, run)
            else:
                handles.append(before(self.blocks[write.layer], repeat_block_input))
                handles += self._at(write, replace_slices, run)
            first = write.layer + (write.site == "resid_post")
            for block in self.blocks[first:]:
                handles.append(_repeat_arguments(block, run))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _read_of(self, run: _Run, read: HookPoint, write: HookPoint, h: Tensor) -> Tensor:
        """The activations at `read`, when those at `write` are h."""
        if read == write:
            return h
        if run.read is None:
            raise SaebenchError(
                f"an SAE cannot read {read} and write {write}: the place it reads comes after: check --hook"
            )
        return run.read

    @contextmanager
    def _changed(self, hook: HookPoint, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """`change` applied to the activations at `hook`; None leaves them."""
        handles = self._at(hook, change, _Run(0))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _at(self, hook: HookPoint, change: Callable[[Tensor], Tensor | None], run: _Run) -> list[Any]:
        """Call `change` with the activations at `hook`; what it returns (unless None) stands there instead."""
        block = self.blocks[hook.layer]
        if hook.site == "resid_pre":
            return [before(block, change)]
        if hook.site == "resid_post":
            return [after(block, change)]
        name, end = self._sites[hook.site]
        module = block.get_submodule(name)
        if end == "in":
            return [before(module, change)]
        if end == "out":
            return [after(module, change)]

        def keep_base(h: Tensor) -> None:
            run.base = h

        def through_attention(out: Tensor) -> Tensor | None:
            assert run.base is not None
            changed = change(run.base + out)
            return None if changed is None else changed - run.base

        return [before(block, keep_base), after(module, through_attention)]


def _rows_of(copy: Copy, h: Tensor) -> Tensor:
    return copy.rows.to(h.dtype)


def _repeat_arguments(block: nn.Module, run: _Run) -> Any:
    """Give every row of a forked batch its own context's masks and positions.

    A Llama with SDPA passes nothing of the batch's size; eager attention and others pass masks [B, 1, T, T].
    """

    def repeat(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(repeat(v) for v in value)
        assert run.source is not None
        if isinstance(value, Tensor) and value.ndim > 1 and 1 < run.size == len(value) != len(run.source):
            return value[run.source]
        return value

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if run.source is None:
            return None
        return tuple(repeat(a) for a in args), {name: repeat(v) for name, v in kwargs.items()}

    return block.register_forward_pre_hook(hook, with_kwargs=True)
