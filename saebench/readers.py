"""Reading checkpoint files exactly, or not at all: JSON, safetensors, torch zip archives, npz.

A checkpoint is a stranger's file. Nothing here runs code from one, believes a size that the file itself does not bear
out, or turns a value into another type. Weights come as float32; large files stay memory-mapped (privately: what is
done to a tensor never reaches the file), so loading holds one copy of them.
"""

import json
import math
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saebench.errors import SaebenchError, one_line

# Files below this are copied into memory, so that overwriting one cannot disturb an SAE already loaded from it.
_MAP_FROM = 2**28
_JSON_LIMIT = 2**24
# Random weights hardly compress: an archive that claims more than this many times its own size is lying.
_EXPANSION_LIMIT = 50
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class CheckpointError(SaebenchError):
    """A checkpoint that cannot be read exactly; always one line, whatever names a file put into it."""

    def __init__(self, message: str):
        text = "".join(c if c.isprintable() else " " for c in " ".join(message.split()))
        super().__init__(text if len(text) <= 600 else text[:599] + "…")


class MissingError(CheckpointError):
    """A checkpoint that lacks something a user can supply.

    Attributes:
        option: the name of what supplies it, "k" or "scale".
    """

    def __init__(self, option: str, message: str):
        super().__init__(f"{message}: supply it with --{option}")
        self.option = option


@dataclass(frozen=True)
class LoadOptions:
    """What the user supplies for what a checkpoint does not say.

    Attributes:
        k: active latents per token, for a TopK checkpoint that does not hold it.
        scale: what activations are multiplied by before the encoder, for a checkpoint that needs and does not hold it.
        ignore_keys: config keys or tensors the format does not know and the user vouches for.
    """

    k: int | None = None
    scale: float | None = None
    ignore_keys: frozenset[str] = frozenset()


# --- JSON ------------------------------------------------------------------------------------------------------------


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} appears twice")
        found[key] = value
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing, not JSON, not an object, a key given twice, or absurdly large.
    """
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise ValueError("larger than any config")
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value


@dataclass(frozen=True)
class Config:
    """A JSON object whose values are taken by type, never converted: the word "false" is not a boolean, 7.5 is no k.

    Attributes:
        path: the file, for messages.
        data: the object.
        prefix: where in the file the object lies, for messages ("trainer.").
    """

    path: Path
    data: dict[str, Any]
    prefix: str = ""

    @classmethod
    def read(cls, path: Path) -> "Config":
        return cls(path, read_json(path))

    def _wrong(self, key: str, wanted: str) -> CheckpointError:
        value = json.dumps(self.data.get(key))[:60]
        return CheckpointError(f"{self.path}: '{self.prefix}{key}' is {value}, expected {wanted}")

    def check(self, matter: Collection[str], harmless: Collection[str], options: LoadOptions) -> None:
        """Refuse a key that is on neither list: it may change every number."""
        strange = sorted(set(self.data) - set(matter) - set(harmless) - options.ignore_keys)
        if strange:
            raise CheckpointError(
                f"{self.path}: unknown key '{self.prefix}{strange[0]}' may change what the SAE computes; "
                f"if it does not, pass --ignore-key {strange[0]}"
            )

    def has(self, key: str) -> bool:
        return self.data.get(key) is not None

    def table(self, key: str) -> "Config":
        """The object under `key`; empty where there is none."""
        value = self.data.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Config(self.path, value or {}, f"{self.prefix}{key}.")

    def integer(self, key: str, default: int | None = None, low: int = 1) -> int | None:
        value = self.data.get(key, default)
        if value is None:
            return default
        if type(value) is not int or value < low:
            raise self._wrong(key, f"a whole number from {low}")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        value = self.data.get(key, default)
        if value is None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(key, "a finite number")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """A JSON true or false; an error where it is missing and there is no default."""
        value = self.data.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not bool:
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self.data.get(key, default)
        if value is None:
            return default
        if not isinstance(value, str) or not value.isprintable() or len(value) > 500:
            raise self._wrong(key, "a plain string")
        return value

    def choice(self, key: str, allowed: Collection[str], default: str | None = None) -> str:
        value = self.data.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self._wrong(key, f"one of {', '.join(sorted(allowed))}")
        return value

    def expect(self, key: str, value: int) -> None:
        """The number under `key`, where there is one, must be `value` (what the tensors say)."""
        said = self.integer(key)
        if said is not None and said != value:
            raise self._wrong(key, f"{value} as the tensors have it")


# --- tensors ---------------------------------------------------------------------------------------------------------


class Weights(ABC):
    """A file of named tensors. Shapes are known from its index; each tensor is read when it is asked for.

    Attributes:
        path: the file.
        shapes, dtypes: of each tensor, by name.
        values: what else lies beside the tensors (a torch file may hold plain numbers and strings).
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    values: dict[str, Any]

    @property
    def dtype(self) -> str:
        """The precision of the largest tensor: that of the weights."""
        return self.dtypes[max(self.shapes, key=lambda name: math.prod(self.shapes[name]))]

    @abstractmethod
    def _open(self, name: str) -> AbstractContextManager[Tensor]:
        """A context that gives the tensor as it is stored, and frees its pages after."""

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a tensor that must exist, with that many dimensions, none of them 0."""
        if name not in self.shapes:
            raise CheckpointError(f"{self.path}: tensor '{name}' is missing")
        shape = self.shapes[name]
        if len(shape) != ndim or 0 in shape:
            raise CheckpointError(
                f"{self.path}: '{name}' has shape {shape}, expected {ndim} dimensions, none of size 0"
            )
        return shape

    def check(self, matter: Collection[str], harmless: Collection[str], options: LoadOptions) -> None:
        """Refuse a tensor (or other value) that is on neither list: it may change what the SAE computes."""
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
        """The tensor in float32, which must have that shape; a view of the file where that is large.

        Raises:
            CheckpointError: missing, of another shape, or not floating point.
        """
        with self._checked(name, shape) as tensor:
            wide = tensor.detach().float()
            mapped = wide.data_ptr() == tensor.data_ptr()
            return wide.clone() if mapped and self.path.stat().st_size < _MAP_FROM else wide

    def transposed(self, name: str, *shape: int) -> Tensor:
        """The tensor of that (stored) shape, transposed, float32, its rows contiguous.

        The stored one's pages are let go when this returns: at no time are there two copies of more than this tensor.
        """
        with self._checked(name, shape) as tensor:
            out = torch.empty(shape[1], shape[0])
            step = max(1, 2**22 // shape[0])  # by blocks of columns: the source is not touched twice
            for start in range(0, shape[1], step):
                out[start : start + step] = tensor[:, start : start + step].T
            return out

    def scalar(self, name: str) -> float:
        """A tensor of one element, as a number (integers too)."""
        self.shape(name, len(self.shapes.get(name, ())))
        with self._open(name) as tensor:
            if tensor.numel() != 1:
                raise CheckpointError(f"{self.path}: '{name}' has shape {self.shapes[name]}, expected one number")
            return float(tensor.detach().double().reshape(()).item())

    def integers(self, name: str) -> tuple[int, ...]:
        """A one-dimensional tensor of whole numbers."""
        self.shape(name, 1)
        with self._open(name) as tensor:
            if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.is_complex():
                raise CheckpointError(f"{self.path}: '{name}' is {tensor.dtype}, expected whole numbers")
            return tuple(int(v) for v in tensor.tolist())


class SafetensorsFile(Weights):
    """A safetensors file; its reader checks that header and payload agree."""

    def __init__(self, path: Path):
        self.path, self.values = path, {}
        with self._file() as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            self.shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
            self.dtypes = {name: _SAFETENSORS_DTYPES.get(s.get_dtype(), s.get_dtype()) for name, s in slices.items()}

    @contextmanager
    def _file(self) -> Iterator[Any]:
        try:
            with safe_open(str(self.path), framework="pt") as file:
                yield file
        except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{self.path}: not readable as safetensors: {one_line(error)}") from error

    @contextmanager
    def _open(self, name: str) -> Iterator[Tensor]:
        with self._file() as file:
            tensor = file.get_tensor(name)
        yield tensor


class TorchFile(Weights):
    """A torch zip archive, unpickled with `weights_only`; the dictionary of tensors may lie under a key of it.

    Torch believes the sizes that the pickle states; here they must match the archive's own, and no tensor may be
    larger than its storage (an expanded one would fill memory when copied).
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
            raise CheckpointError(f"{self.path}: expected a dictionary with names for keys")
        return value

    @contextmanager
    def _open(self, name: str) -> Iterator[Tensor]:
        yield self._state()[name]


def _torch_archive(path: Path) -> dict[str, Any]:
    try:
        sizes = _stored_sizes(path)
        with warnings.catch_warnings():  # it also warns of what it then refuses
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises a dozen types for a damaged archive
        raise CheckpointError(f"{path}: not readable as torch weights: {one_line(error, 160)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
    found: dict[int, int] = {}
    for tensor in _tensors_in(state):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{path}: holds a tensor that is not plain ({tensor.layout}, {tensor.dtype})")
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise CheckpointError(f"{path}: a tensor of shape {tuple(tensor.shape)} is larger than its storage")
        found[storage.data_ptr()] = storage.nbytes()
    if sorted(n for n in found.values() if n) != sorted(n for n in sizes if n):
        raise CheckpointError(f"{path}: the sizes its index states are not those of the data; the file is damaged")
    return state


def _stored_sizes(path: Path) -> list[int]:
    """Sizes in bytes of the archive's storages, once its members are known to be stored, not compressed."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: not a torch zip archive (before torch 1.6?): load it with torch and save it again"
        )
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
        raise CheckpointError(f"{path}: a torch archive with compressed members: refused")
    if sum(m.file_size for m in members) > path.stat().st_size:
        raise CheckpointError(f"{path}: its members overlap; the archive is damaged")
    return [m.file_size for m in members if m.filename.split("/")[-2:-1] == ["data"] and "/data/" in m.filename]


def _tensors_in(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple) and depth < 8:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item, depth + 1)


class NpzFile(Weights):
    """A numpy archive of plain arrays, read without pickle, each array as long as its own header says."""

    def __init__(self, path: Path):
        self.path, self.values = path, {}
        self._headers: dict[str, tuple[tuple[int, ...], np.dtype, bool]] = {}
        with self._archive() as archive:
            for member in archive.infolist():
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
            raise CheckpointError(f"{self.path}: not readable as npz: {one_line(error, 160)}") from error

    def _header(self, member: zipfile.ZipInfo, file: Any) -> tuple[tuple[int, ...], np.dtype, bool]:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file, max_header_size=10_000)
        size = math.prod(shape) * dtype.itemsize + file.tell()
        if dtype.hasobject or size != member.file_size:
            raise CheckpointError(f"{self.path}: '{member.filename}' is not the plain array its header states")
        if member.file_size > _EXPANSION_LIMIT * max(member.compress_size, 1) + 2**20:
            raise CheckpointError(f"{self.path}: '{member.filename}' claims an absurd size for what is stored")
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


def finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, in one pass and without a mask as large as the tensor."""
    plain = tensor.T if tensor.ndim == 2 and not tensor.is_contiguous() else tensor
    low, high = torch.aminmax(plain)  # NaN wins both
    return bool(torch.isfinite(low) & torch.isfinite(high))


# --- recognising -----------------------------------------------------------------------------------------------------


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a weights file, from its index; empty where it cannot be read. Never raises."""
    try:
        stat = path.stat()
        return dict(_shapes(path, stat.st_mtime_ns, stat.st_size))
    except (SaebenchError, OSError, ValueError):
        return {}


@lru_cache(maxsize=64)
def _shapes(path: Path, mtime: int, size: int) -> dict[str, tuple[int, ...]]:
    del mtime, size  # only to notice that the file changed
    if path.suffix == ".safetensors":
        return SafetensorsFile(path).shapes
    if path.suffix == ".npz":
        return NpzFile(path).shapes
    if path.suffix in (".pt", ".pth"):
        return TorchFile(path).shapes
    return {}


def folder_of(path: Path, weights: str) -> Path | None:
    """The folder of a checkpoint whose weights file has that name, given the folder or the file itself."""
    if path.is_dir():
        return path if (path / weights).is_file() else None
    return path.parent if path.name == weights and path.is_file() else None


def torch_file_of(path: Path) -> Path | None:
    """The torch file that is a whole checkpoint: `path` itself, or the only one of its folder.

    `ae.pt` is not one: its meaning lies in the config beside it.
    """
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix in (".pt", ".pth") and p.is_file()]
        return found[0] if len(found) == 1 and found[0].name != "ae.pt" else None
    return path if path.suffix in (".pt", ".pth") and path.name != "ae.pt" and path.is_file() else None


def oriented(weights: Weights, name: str, rows: int, columns: int) -> Tensor:
    """A matrix [rows, columns], float32, rows contiguous, stored that way or transposed: its biases' lengths tell.

    Raises:
        CheckpointError: neither shape fits, or both do.
    """
    shape = weights.shape(name, 2)
    if rows == columns:
        raise CheckpointError(f"{weights.path}: '{name}' is square: its biases do not tell which way it is stored")
    if shape == (rows, columns):
        return weights.get(name, rows, columns).contiguous()
    return weights.transposed(name, columns, rows)
