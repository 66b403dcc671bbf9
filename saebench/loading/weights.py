"""Files of named tensors, read exactly or refused: the base class, and safetensors. `archives.py` has torch and npz.

A checkpoint is untrusted. Nothing here runs its code, trusts a size that its data does not confirm, or converts a value to
another type. Weights are returned as float32. Large files stay memory-mapped, privately (a write to a tensor never reaches
the file), so that loading holds one copy of the weights.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saebench.format import CheckpointError, LoadOptions
from saebench.loading.damage import unreadable

# Smaller files are copied into memory, so that overwriting a file leaves an SAE already loaded from it intact.
_MAP_FROM = 2**28
_HEADER_LIMIT = 2**24
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Weights(ABC):
    """A file of named tensors. Shapes come from the index; each tensor is read on request.

    Attributes:
        path: the file.
        shapes, dtypes: of each tensor, by name.
        values: entries that are no tensors (a torch file may contain numbers and strings).
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    values: dict[str, Any]

    @property
    def dtype(self) -> str:
        """The dtype of the largest tensor, which is a weight matrix."""
        return self.dtypes[max(self.shapes, key=lambda name: math.prod(self.shapes[name]))]

    @abstractmethod
    def _open(self, name: str) -> AbstractContextManager[Tensor]:
        """A context manager that yields the tensor as stored, and frees its pages at exit."""

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a tensor; a CheckpointError unless it exists with `ndim` dimensions, none of size 0."""
        if name not in self.shapes:
            raise CheckpointError(f"{self.path}: tensor '{name}' is missing")
        shape = self.shapes[name]
        if len(shape) != ndim or 0 in shape:
            raise CheckpointError(
                f"{self.path}: '{name}' has shape {shape}, expected {ndim} dimensions, none of size 0"
            )
        return shape

    def check(self, matter: Collection[str], harmless: Collection[str], options: LoadOptions) -> None:
        """Refuse an entry that is on neither list, since it may change every number."""
        strange = sorted((self.shapes.keys() | self.values.keys()) - set(matter) - set(harmless) - options.ignore_keys)
        if strange:
            raise CheckpointError(
                f"{self.path}: unknown entry '{strange[0]}' may change what the SAE computes; "
                f"if it does not, pass --ignore-key {strange[0]}"
            )

    @contextmanager
    def _checked(self, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        self.shape(name, len(shape))
        if self.shapes[name] != shape:
            raise CheckpointError(f"{self.path}: '{name}' has shape {self.shapes[name]}, expected {shape}")
        with self._open(name) as tensor:
            if not tensor.is_floating_point():
                raise CheckpointError(f"{self.path}: '{name}' is {tensor.dtype}, expected floating point weights")
            yield tensor

    def get(self, name: str, *shape: int) -> Tensor:
        """The tensor of that shape in float32; a view of the file if the file is large.

        Raises:
            CheckpointError: the tensor is missing, of another shape, or not floating point.
        """
        with self._checked(name, shape) as tensor:
            wide = tensor.detach().float()
            mapped = wide.data_ptr() == tensor.data_ptr()
            return wide.clone() if mapped and self.path.stat().st_size < _MAP_FROM else wide

    def transposed(self, name: str, *shape: int) -> Tensor:
        """The transpose of the tensor stored in that shape, float32, rows contiguous.

        The stored tensor's pages are freed on return, so that memory holds at most one tensor twice.
        """
        with self._checked(name, shape) as tensor:
            out = torch.empty(shape[1], shape[0])
            step = max(1, 2**22 // shape[0])  # by blocks of columns, so that each page of the source is read once
            for start in range(0, shape[1], step):
                out[start : start + step] = tensor[:, start : start + step].T
            return out

    def scalar(self, name: str) -> float:
        """The value of a tensor with one element, floating point or integer."""
        self.shape(name, len(self.shapes.get(name, ())))
        with self._open(name) as tensor:
            if tensor.numel() != 1:
                raise CheckpointError(f"{self.path}: '{name}' has shape {self.shapes[name]}, expected one number")
            return float(tensor.detach().double().reshape(()).item())

    def integers(self, name: str) -> tuple[int, ...]:
        """The values of a one-dimensional tensor of integers."""
        self.shape(name, 1)
        with self._open(name) as tensor:
            if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.is_complex():
                raise CheckpointError(f"{self.path}: '{name}' is {tensor.dtype}, expected whole numbers")
            return tuple(int(v) for v in tensor.tolist())


class SafetensorsFile(Weights):
    """A safetensors file; the library checks that header and data agree."""

    def __init__(self, path: Path):
        self.path, self.values = path, {}
        self._refuse_long_header()
        with self._file() as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            self.shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
            self.dtypes = {name: _SAFETENSORS_DTYPES.get(s.get_dtype(), s.get_dtype()) for name, s in slices.items()}

    def _refuse_long_header(self) -> None:
        """Refuse a huge header before it is parsed: an SAE's index is a few kilobytes."""
        try:
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
        except OSError as error:
            raise unreadable(self.path, "safetensors", error) from error
        if _HEADER_LIMIT < length <= self.path.stat().st_size:
            raise CheckpointError(f"{self.path}: refused, a header of {length} bytes is larger than any SAE's index")

    @contextmanager
    def _file(self) -> Iterator[Any]:
        try:
            with safe_open(str(self.path), framework="pt") as file:
                yield file
        except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError) as error:
            raise unreadable(self.path, "safetensors", error) from error

    @contextmanager
    def _open(self, name: str) -> Iterator[Tensor]:
        with self._file() as file:
            tensor = file.get_tensor(name)
        yield tensor


def finite(tensor: Tensor) -> bool:
    """Whether every element is finite, in one pass and without a mask as large as the tensor."""
    plain = tensor.T if tensor.ndim == 2 and not tensor.is_contiguous() else tensor
    low, high = torch.aminmax(plain)  # either is NaN if any element is
    return bool(torch.isfinite(low) & torch.isfinite(high))
