"""What format plugins read checkpoints with: typed JSON, files of tensors, and which files a path means."""

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
    """Tensor names and shapes of a weights file, from its index; empty where it cannot be read. Never raises."""
    try:
        stat = path.stat()
        return dict(_shapes(path, stat.st_mtime_ns, stat.st_size))
    except (SaebenchError, OSError, ValueError):
        return {}


def weights_problem(path: Path) -> CheckpointError | None:
    """Why a file that is named as weights cannot be opened; None where it can, or is no such file."""
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


def torch_checkpoint(
    path: Path, entries: Collection[str], options: LoadOptions, harmless: Collection[str] = ()
) -> TorchFile:
    """The torch file that is a whole checkpoint, which holds these entries and no others.

    Args:
        path: the file, or a folder with no other torch file.
        entries: the names that matter; one that is missing is noticed when it is read.
        harmless: what may be there and changes nothing.

    Raises:
        CheckpointError: no such file, damaged, or with an unknown entry that the user does not vouch for.
    """
    source = torch_file_of(path)
    if source is None:
        raise CheckpointError(f"{path}: not a torch file")
    file = TorchFile(source)
    file.check(entries, harmless, options)
    return file


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
