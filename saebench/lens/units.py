"""A resumable map: each finished item is stored with a checksum, and a rerun after a kill computes the rest."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from saebench.cache import seal, unseal
from saebench.errors import NonFiniteError

T = TypeVar("T")


class Progress(Protocol):
    """Receives the number of finished items of a map (`saebench.running` displays it)."""

    def begin(self, label: str, total: int, done: int, unit: str = ...) -> None: ...

    def advance(self, count: int) -> None: ...

    def end(self) -> None: ...


def map_units(
    folder: Path | None, key: str, items: Sequence[T], compute: Callable[[T], Any], progress: Progress | None
) -> list[Any]:
    """`compute(item)` for every item, in order, read from `folder` where an earlier run finished it.

    A result passes through JSON either way, so that a resumed run returns the same bits as one that was never killed.

    Raises:
        NonFiniteError: a result holds NaN or infinity.
    """
    own = None if folder is None else folder / _digest(key)
    paths = [None if own is None else own / f"{_digest(item)}.json" for item in items]
    found = [_read(path) for path in paths]
    if progress is not None and items:
        progress.begin(key, len(items), sum(data is not None for data in found), "units")
    try:
        out = []
        for item, path, data in zip(items, paths, found, strict=True):
            if data is None:
                data = _encode(key, item, compute(item))
                _write(path, data)
                if progress is not None:
                    progress.advance(1)
            out.append(json.loads(data))
        return out
    finally:
        if progress is not None and items:
            progress.end()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def _encode(key: str, item: Any, value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except ValueError as error:
        raise NonFiniteError(f"{key}: the result of {item} is not finite") from error


def _read(path: Path | None) -> bytes | None:
    """A finished item; None where the file is missing, damaged or truncated."""
    try:
        return None if path is None else unseal(path.read_bytes())
    except OSError:
        return None


def _write(path: Path | None, data: bytes) -> None:
    """Keep a finished item. A folder that cannot be written (full disk, no permission) costs the resume, not the run."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(seal(data))
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
