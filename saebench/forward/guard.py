"""Detect and undo a metric's changes to tensors that it shares with other metrics."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench.sae import SAE

Leaf = Tensor | np.ndarray

# Entries of a weight tensor up to which every call sums them, in a millisecond or two.
_SUMMED = 2**22


class Guard:
    """Copies of all tensors and arrays of a value, to detect changes that a plugin makes."""

    def __init__(self, value: Any, but: "Guard | None" = None) -> None:
        """
        Args:
            value: a dataclass of tensors, such as a batch.
            but: another guard; its tensors are left out.
        """
        seen = set() if but is None else {id(leaf) for _, leaf, _ in but._kept}
        self._kept: list[tuple[str, Leaf, Leaf]] = []
        for name, leaf in _leaves("", value):
            if id(leaf) not in seen:
                seen.add(id(leaf))
                self._kept.append((name, leaf, leaf.clone() if isinstance(leaf, Tensor) else leaf.copy()))

    def restore(self) -> str | None:
        """Undo all changes; the name of the first changed value, None where nothing changed."""
        changed = [(name, leaf, kept) for name, leaf, kept in self._kept if not _same(leaf, kept)]
        for _, leaf, kept in changed:
            if isinstance(leaf, Tensor) and isinstance(kept, Tensor):
                if leaf.shape != kept.shape or leaf.dtype != kept.dtype:
                    leaf.data = kept.clone()
                leaf.data.copy_(kept)
            elif isinstance(leaf, np.ndarray) and isinstance(kept, np.ndarray):
                leaf.setflags(write=True)
                if leaf.dtype != kept.dtype:
                    leaf.dtype = kept.dtype  # type: ignore[misc]
                if leaf.shape != kept.shape:
                    leaf.shape = kept.shape
                leaf[...] = kept
        return f"batch.{changed[0][0]}" if changed else None


class SAEGuard:
    """Detects changes to an SAE's weights without copying them: by version counters, checksums, and samples of large tensors."""

    def __init__(self, sae: SAE, fresh: Callable[[], SAE]) -> None:
        """
        Args:
            fresh: loads the SAE again, to undo changes.
        """
        self._sae, self._fresh = sae, fresh
        self._seen = self._look()

    def restore(self) -> str | None:
        """Undo changes; the name of the first changed tensor, None where nothing changed."""
        now = self._look()
        changed = [new.name for new, old in zip(now, self._seen, strict=True) if not new.equals(old)]
        if not changed:
            return None
        for (name, tensor), (_, kept) in zip(self._sae.tensors(), self._fresh().tensors(), strict=True):
            if tensor.shape == kept.shape:
                tensor.data.copy_(kept)
            else:
                owner, _, attribute = name.rpartition(".")
                object.__setattr__(self._sae.activation if owner else self._sae, attribute, kept.to(tensor.device))
        self._seen = self._look()
        return f"the SAE's {changed[0]}"

    def _look(self) -> list["_Glance"]:
        return [
            _Glance(name, tensor._version, _sample(tensor), _checksum(tensor)) for name, tensor in self._sae.tensors()
        ]


@dataclass(frozen=True)
class _Glance:
    name: str
    version: int
    sample: Tensor
    checksum: int | None

    def equals(self, other: "_Glance") -> bool:
        same = self.version == other.version and self.checksum == other.checksum
        return same and _same(self.sample, other.sample)


def _checksum(tensor: Tensor) -> int | None:
    """Sum of a float32 tensor's bits; None where it would take long."""
    if tensor.numel() > _SUMMED or tensor.dtype != torch.float32:
        return None
    return int(tensor.detach().view(torch.int32).sum(dtype=torch.int64))


def _sample(tensor: Tensor) -> Tensor:
    """A copy of at most some 4,096 entries, evenly spread."""
    side = 64 if tensor.ndim > 1 else 4096
    return tensor.detach()[tuple(slice(None, None, max(1, -(-size // side))) for size in tensor.shape)].clone()


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Leaf]]:
    """The tensors and arrays of a value, nested dataclasses included, with their names."""
    if isinstance(value, Tensor | np.ndarray):
        yield name, value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            inner = getattr(value, field.name)
            yield from _leaves(f"{name}.{field.name.lstrip('_')}".lstrip("."), inner)


def _same(a: Leaf, b: Leaf) -> bool:
    """Whether two tensors or arrays are equal in type, shape and value; NaN equals NaN."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and bool(torch.isclose(a, b, 0, 0, equal_nan=True).all()))
