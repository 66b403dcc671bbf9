"""The reading functions of format plugins: typed JSON configs, files of tensors, and the files of a checkpoint path."""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from saebench.errors import SaebenchError, one_line
from saebench.format import CheckpointError as CheckpointError
from saebench.format import LoadOptions as LoadOptions
from saebench.format import MissingError as MissingError
from saebench.loading.archives import NpzFile as NpzFile
from saebench.loading.archives import TorchFile as TorchFile
from saebench.loading.config import Config as Config
from saebench.loading.config import read_json as read_json
from saebench.loading.weights import SafetensorsFile as SafetensorsFile
from saebench.loading.weights import Weights as Weights
from saebench.loading.weights import finite as finite


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a weights file, from its index; empty if it cannot be read. Never raises."""
    try:
        stat = path.stat()
        return dict(_shapes(path, stat.st_mtime_ns, stat.st_size))
    except (SaebenchError, OSError, ValueError):
        return {}


def weights_problem(path: Path) -> CheckpointError | None:
    """The error of opening a file with a weights suffix; None if it opens, or has another suffix."""
    try:
        stat = path.stat()
        _shapes(path, stat.st_mtime_ns, stat.st_size)
    except CheckpointError as error:
        return error
    except (OSError, ValueError) as error:
        return CheckpointError(f"{path}: cannot be read: {one_line(error)}")
    return None


@lru_cache(maxsize=64)
def _shapes(path: Path, mtime: int, size: int) -> dict[str, tuple[int, ...]]:
    del mtime, size  # part of the cache key, so that a changed file is read again
    if path.suffix == ".safetensors":
        return SafetensorsFile(path).shapes
    if path.suffix == ".npz":
        return NpzFile(path).shapes
    if path.suffix in (".pt", ".pth"):
        return TorchFile(path).shapes
    return {}


def folder_of(path: Path, weights: str) -> Path | None:
    """The folder of a checkpoint, given the folder or its weights file of that name."""
    if path.is_dir():
        return path if (path / weights).is_file() else None
    return path.parent if path.name == weights and path.is_file() else None


def torch_file_of(path: Path) -> Path | None:
    """The torch file that is a whole checkpoint: `path` itself, or the only one of its folder.

    `ae.pt` does not count: it needs the config beside it.
    """
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix in (".pt", ".pth") and p.is_file()]
        return found[0] if len(found) == 1 and found[0].name != "ae.pt" else None
    return path if path.suffix in (".pt", ".pth") and path.name != "ae.pt" and path.is_file() else None


def torch_checkpoint(
    path: Path, entries: Collection[str], options: LoadOptions, harmless: Collection[str] = ()
) -> TorchFile:
    """Open the torch file that is a whole checkpoint, with these entries and no others.

    Args:
        path: the file, or a folder with no other torch file.
        entries: names of the entries that matter; a missing one raises only when it is read.
        harmless: names of entries that change nothing.

    Raises:
        CheckpointError: no such file, damaged, or with an unknown entry that no --ignore-key names.
    """
    source = torch_file_of(path)
    if source is None:
        raise CheckpointError(f"{path}: not a torch file")
    file = TorchFile(source)
    file.check(entries, harmless, options)
    return file


def oriented(weights: Weights, name: str, rows: int, columns: int) -> Tensor:
    """A matrix [rows, columns], float32, rows contiguous; its shape decides whether it is stored transposed.

    Raises:
        CheckpointError: neither shape fits, or both do.
    """
    shape = weights.shape(name, 2)
    if rows == columns:
        raise CheckpointError(
            f"{weights.path}: '{name}' is square, so its shape does not decide whether it is stored transposed"
        )
    if shape == (rows, columns):
        return weights.get(name, rows, columns).contiguous()
    return weights.transposed(name, columns, rows)
