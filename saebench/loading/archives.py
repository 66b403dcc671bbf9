"""Tensors in zip archives: torch files and npz. Both may state false sizes, and a torch file may contain code."""

import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from saebench.errors import one_line
from saebench.format import CheckpointError
from saebench.loading.damage import is_old_torch, unreadable
from saebench.loading.weights import Weights

# Trained weights hardly compress: a larger ratio of stated size to stored size is a decompression bomb.
_EXPANSION_LIMIT = 50


class TorchFile(Weights):
    """A torch zip archive, unpickled with `weights_only`.

    Torch trusts the sizes that the pickle states. Here they must match the archive's own, and no tensor may be larger than
    its storage (an expanded tensor would fill memory when copied).

    Args:
        path: the file.
        root: key of the dictionary of tensors; None if the archive holds that dictionary itself.

    Raises:
        CheckpointError: unreadable, damaged, or not a dictionary of tensors.
    """

    def __init__(self, path: Path, root: str | None = None):
        self.path, self.root = path, root
        state = self._state()
        self.shapes = {n: tuple(v.shape) for n, v in state.items() if isinstance(v, Tensor)}
        self.dtypes = {n: str(v.dtype).removeprefix("torch.") for n, v in state.items() if isinstance(v, Tensor)}
        self.values = {n: v for n, v in state.items() if not isinstance(v, Tensor)}

    def _state(self) -> dict[str, Any]:
        state = _torch_archive(self.path)
        value: Any = state if self.root is None else state.get(self.root)
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path}: expected a dictionary of tensors, found {type(value).__name__}")
        if any(not isinstance(name, str) for name in value):
            raise CheckpointError(f"{self.path}: expected a dictionary with text keys")
        return value

    @contextmanager
    def _open(self, name: str) -> Iterator[Tensor]:
        yield self._state()[name]


def _torch_archive(path: Path) -> dict[str, Any]:
    try:
        sizes = _stored_sizes(path)
        with warnings.catch_warnings():  # torch also warns before an error
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except PermissionError as error:
        raise unreadable(path, "torch weights", error) from error
    except Exception as error:  # torch raises a dozen types for a damaged archive
        raise CheckpointError(f"{path}: not readable as torch weights: {one_line(error, 160)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
    found: dict[int, int] = {}
    for tensor in _tensors_in(state):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: expected plain dense tensors, found one of layout {tensor.layout}, dtype {tensor.dtype}"
            )
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise CheckpointError(f"{path}: a tensor of shape {tuple(tensor.shape)} is larger than its storage")
        found[storage.data_ptr()] = storage.nbytes()
    if sorted(n for n in found.values() if n) != sorted(n for n in sizes if n):
        raise CheckpointError(
            f"{path}: sizes in the index and in the data differ; the file is damaged: download it again"
        )
    return state


def _stored_sizes(path: Path) -> list[int]:
    """Sizes in bytes of the archive's storages, after a check that every member is stored uncompressed."""
    if not zipfile.is_zipfile(path):
        if is_old_torch(path):
            raise CheckpointError(
                f"{path}: not a zip archive but a bare pickle, as torch saved before 1.6: load it with torch and save it again"
            )
        raise unreadable(path, "torch weights", ValueError("the end of the zip archive is missing"))
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
        raise CheckpointError(
            f"{path}: refused, a torch archive with compressed members: save it again with torch.save"
        )
    if sum(m.file_size for m in members) > path.stat().st_size:
        raise CheckpointError(f"{path}: archive members overlap; the file is damaged: download it again")
    return [m.file_size for m in members if m.filename.split("/")[-2:-1] == ["data"] and "/data/" in m.filename]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers; each container is visited once, also where it contains itself."""
    seen: set[int] = set()
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            left += item.values() if isinstance(item, dict) else item


class NpzFile(Weights):
    """A numpy archive of plain arrays, read without pickle; each array has the length that its header states."""

    def __init__(self, path: Path):
        self.path, self.values = path, {}
        self._headers: dict[str, tuple[tuple[int, ...], np.dtype, bool]] = {}
        with self._archive() as archive:
            members = archive.infolist()
            if sum(m.compress_size for m in members) > path.stat().st_size:
                raise CheckpointError(f"{path}: archive members overlap; the file is damaged: download it again")
            for member in members:
                self._refuse_bomb(member)
                with archive.open(member) as file:
                    self._headers[member.filename.removesuffix(".npy")] = self._header(member, file)
        self.shapes = {name: shape for name, (shape, _, _) in self._headers.items()}
        self.dtypes = {name: dtype.name for name, (_, dtype, _) in self._headers.items()}

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except CheckpointError:
            raise
        except Exception as error:  # zipfile, zlib and numpy raise a dozen types for a damaged archive
            raise unreadable(self.path, "npz", error) from error

    def _refuse_bomb(self, member: zipfile.ZipInfo) -> None:
        """Refuse a decompression bomb unopened: codecs other than deflate unpack gigabytes from a kilobyte in one block."""
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(
                f"{self.path}: '{member.filename}' is compressed with method {member.compress_type}; only stored and deflated "
                "members are read: save the arrays again with numpy.savez"
            )
        if member.file_size > _EXPANSION_LIMIT * max(member.compress_size, 1) + 2**20:
            raise CheckpointError(
                f"{self.path}: '{member.filename}' claims {member.file_size} bytes, an absurd size for the "
                f"{member.compress_size} stored"
            )

    def _header(self, member: zipfile.ZipInfo, file: Any) -> tuple[tuple[int, ...], np.dtype, bool]:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file, max_header_size=10_000)
        size = math.prod(shape) * dtype.itemsize + file.tell()
        if dtype.kind not in "biufc" or size != member.file_size or any(n < 0 for n in shape):
            raise CheckpointError(
                f"{self.path}: '{member.filename}' does not match its header: expected a plain array of that shape and dtype"
            )
        return shape, dtype, fortran

    @contextmanager
    def _open(self, name: str) -> Iterator[Tensor]:
        shape, dtype, fortran = self._headers[name]
        with self._archive() as archive:
            member = next(m for m in archive.infolist() if m.filename.removesuffix(".npy") == name)
            with archive.open(member) as file:
                self._header(member, file)
                flat = np.frombuffer(bytearray(file.read()), dtype=dtype)
            array = flat.reshape(shape, order="F" if fortran else "C")
            tensor = torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))
        yield tensor
