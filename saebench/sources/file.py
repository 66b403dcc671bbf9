"""A file of activations as an activation source."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from saebench.catalog import file_sha256
from saebench.corpus import Contexts
from saebench.errors import NonFiniteError, UsageError, one_line
from saebench.hookpoint import HookPoint
from saebench.labels import Labels
from saebench.reading import require_regular, require_unpacked
from saebench.sources.source import ArraySource

_SUFFIXES = (".npy", ".safetensors", ".parquet")


class FileSource(ArraySource):
    """Activations x [N, d], or [items, positions, d], of a .npy (memory-mapped), .safetensors or .parquet file.

    Each item is a context and, unless its labels are grouped, its own cluster.

    Attributes:
        x: [items, positions, d] in the file's own floating dtype.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UsageError: no such file, not floating point, another number of axes, or empty.
        """
        array = _read(path)
        if array.ndim not in (2, 3):
            raise UsageError(f"--activations {path}: {array.ndim} axes, expected [N, d] or [items, positions, d]")
        if not array.size:
            raise UsageError(f"--activations {path}: empty, of shape {list(array.shape)}")
        self.file_sha256 = file_sha256(path)
        super().__init__(path.name, self.file_sha256)
        self.path = path
        self.x = array[:, None] if array.ndim == 2 else array
        self.labels: Labels | None = None

    def contexts(self) -> Contexts:
        """One context per item; token ids are row numbers."""
        items, positions, _ = self.x.shape
        rows = np.arange(items * positions, dtype=np.int64).reshape(items, positions)
        group = np.arange(items, dtype=np.int64) if self.labels is None else self.labels.group
        return Contexts(
            rows, group, np.zeros(rows.shape, dtype=bool), tuple(f"{self.loaded.id}/{g}" for g in np.unique(group)),
            available=items, labels=self.labels,
        )  # fmt: skip

    def capture(self, token_ids: Tensor, read: HookPoint, write: HookPoint) -> tuple[Tensor, Tensor]:
        """(x, x) with x [B, T, d] float32.

        Raises:
            NonFiniteError: names the first item that has NaN or infinite numbers.
        """
        items = (token_ids[:, 0] // self.x.shape[1]).numpy()
        x = torch.from_numpy(np.asarray(self.x[items], dtype=np.float32))
        bad = (~torch.isfinite(x)).flatten(1).any(1)
        if bool(bad.any()):
            item = int(items[int(bad.nonzero()[0])])
            raise NonFiniteError(f"--activations {self.path}: item {item} holds NaN or infinite numbers: remove it")
        return x, x


def _read(path: Path) -> Any:
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"--activations {path}: expected a file that ends in {', '.join(_SUFFIXES)}")
    if not path.exists():
        raise UsageError(f"--activations {path}: no such file")
    try:
        require_regular(path)
        array = {".npy": _npy, ".safetensors": _safetensors, ".parquet": _parquet}[path.suffix](path)
    except Exception as error:  # damaged files raise whatever the three decoders raise
        raise UsageError(f"--activations {path}: cannot be read: {one_line(error)}") from error
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise UsageError(f"--activations {path}: holds {array.dtype}, expected float16, float32 or float64")
    return array


def _npy(path: Path) -> Any:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays (.npz), not one array")
    return array


def _safetensors(path: Path) -> Any:
    with safe_open(str(path), framework="pt") as file:
        names = list(file.keys())
        if len(names) != 1:
            raise ValueError(f"{len(names)} tensors, expected one")
        tensor = file.get_tensor(names[0])
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _parquet(path: Path) -> Any:
    """The only column of lists of numbers; its size is checked in the file's metadata before any of it is read."""
    file = pq.ParquetFile(path)
    lists = [field.name for field in file.schema_arrow if _is_list(field.type)]
    if len(lists) != 1:
        raise ValueError(f"{len(lists)} columns of lists, expected one")
    if not pa.types.is_floating(file.schema_arrow.field(lists[0]).type.value_type):
        raise ValueError(f"column {lists[0]} holds {file.schema_arrow.field(lists[0]).type}, expected lists of floats")
    require_unpacked(file.metadata)
    column = file.read(columns=[lists[0]])[lists[0]].combine_chunks()
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if column.null_count or len(lengths) > 1:
        raise ValueError(f"column {lists[0]} is ragged: its lists are {', '.join(map(str, lengths[:4]))} long")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
