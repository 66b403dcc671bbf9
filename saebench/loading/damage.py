"""Reasons why a weights file cannot be opened: truncated download, empty file, git-LFS pointer, no permission."""

from pathlib import Path

from saebench.errors import one_line
from saebench.format import CheckpointError

_LFS = b"version https://git-lfs"


class DamagedError(CheckpointError):
    """A weights file that cannot be read at all: truncated, empty, a git-LFS pointer, or not permitted."""


def unreadable(path: Path, kind: str, error: BaseException) -> CheckpointError:
    """The error for a file that its reader could not open, diagnosed from its first bytes and its length.

    Args:
        path: the file.
        kind: the expected kind of file ("safetensors").
        error: the reader's error.
    """
    try:
        head, size = _head(path), path.stat().st_size
    except OSError as problem:
        return DamagedError(f"{path}: cannot be read: {one_line(problem)}")
    if size == 0:
        return DamagedError(f"{path}: cannot be read: the file is empty: download it again")
    if head.startswith(_LFS):
        return DamagedError(
            f"{path}: cannot be read: a git-LFS pointer in place of the weights: `git lfs pull` in its repository, "
            "or download it again"
        )
    if isinstance(error, OSError):  # the machine failed, not the file: no memory to map it, a disk error
        return CheckpointError(f"{path}: cannot be read: {one_line(error, 160)}")
    why = one_line(error, 160)
    return DamagedError(f"{path}: cannot be read as {kind}: truncated or damaged ({why}): download it again")


def is_old_torch(path: Path) -> bool:
    """Whether the file is a bare pickle, which is how torch saved before version 1.6."""
    return _head(path).startswith(b"\x80")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)
