"""Atomic writes, and a check of the output folder before anything is computed."""

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from saebench.errors import SaebenchError, one_line

# Suffix of temporary files, by which those of killed writes are found and removed.
_ENDING = ".saebench-tmp"
# Seconds to wait for another process to write its record, which takes milliseconds, or seconds on a slow network disk.
_PATIENCE = 600
# Seconds after which a temporary file is abandoned: the longest writes take minutes.
_ABANDONED = 24 * 3600


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the target, then rename: readers see the old file or the new one.

    A device or pipe as the target is written to directly. A killed write leaves a temporary file; see `remove_abandoned`.

    Raises:
        SaebenchError: the file cannot be written (full disk, no permission).
    """
    temporary = None
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=_ENDING)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and run the same command again" if full else "check that its folder is writable"
        raise SaebenchError(
            f"{path} could not be written: {one_line(error)}; finished results are kept: {remedy}"
        ) from error


def remove_abandoned(folder: Path) -> int:
    """Remove the temporary files of killed writes from a folder; return their number.

    Age is measured by the later of the file system's clock and this machine's.
    """
    removed = 0
    with suppress(OSError), os.scandir(folder) as entries:
        old = [e for e in entries if e.name.endswith(_ENDING) and e.name.startswith(".")]
        if not old:
            return 0
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".") as probe:
            now = max(time.time(), os.fstat(probe.fileno()).st_mtime)
        for entry in old:
            with suppress(OSError):
                if entry.is_file(follow_symlinks=False) and now - entry.stat().st_mtime > _ABANDONED:
                    os.unlink(entry.path)
                    removed += 1
    return removed


def require_writable(folder: Path) -> None:
    """Create a results folder and prove that it is writable, before anything is computed.

    Raises:
        SaebenchError: the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix="."):
            pass
    except (OSError, ValueError) as error:
        raise SaebenchError(f"--results {folder} cannot be written: {one_line(error)}; name another folder") from error


@contextmanager
def writing(results: Path) -> Iterator[None]:
    """Alone in writing records below `results`: other processes, here or on a host that shares the folder, wait.

    Raises:
        SaebenchError: the folder cannot be written, or somebody holds it for ten minutes.
    """
    lock = FileLock(results / ".lock", timeout=_PATIENCE)
    try:
        results.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise SaebenchError(
            f"{results} is locked by another process: let it end, or remove {results / '.lock'} if there is none"
        ) from error
    except OSError as error:
        raise SaebenchError(f"{results} could not be written: {one_line(error)}; name another --results") from error
    try:
        yield
    finally:
        lock.release()
