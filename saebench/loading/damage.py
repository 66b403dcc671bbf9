"""Files that are not what their names say: cut short on their way here, empty, or pointers that git-LFS left."""

from pathlib import Path

from saebench.errors import one_line
from saebench.format import CheckpointError

_LFS = b"version https://git-lfs"


class DamagedError(CheckpointError):
    """A file of weights that cannot be read at all: cut short, empty, a pointer in place of the data, or not permitted."""


def unreadable(path: Path, kind: str, error: BaseException) -> CheckpointError:
    """What to say of a file that its reader could not open, from its first bytes and its length.

    Args:
        path: the file.
        kind: what it should be ("safetensors").
        error: the reader's.
    """
    try:
        head, size = _head(path), path.stat().st_size
    except OSError as problem:
        return DamagedError(f"{path}: cannot be read: {one_line(problem)}")
    if size == 0:
        return DamagedError(f"{path}: cannot be read: it is empty: download it again")
    if head.startswith(_LFS):
        return DamagedError(
            f"{path}: cannot be read: a git-LFS pointer in place of the weights: `git lfs pull` in its repository, "
            "or download it again"
        )
    if isinstance(error, OSError):  # not the file's fault: no memory to map it, a disk that fails
        return CheckpointError(f"{path}: cannot be read: {one_line(error, 160)}")
    why = one_line(error, 160)
    return DamagedError(f"{path}: cannot be read as {kind}: cut short or damaged ({why}): download it again")


def is_old_torch(path: Path) -> bool:
    """Whether the file is a bare pickle, which is how torch saved before version 1.6."""
    return _head(path).startswith(b"\x80")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)
