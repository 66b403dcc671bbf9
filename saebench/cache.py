"""The cache folder, and tensors cached there under a checksum; a file with a wrong checksum counts as missing."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """The folder of files kept between runs: $SAEBENCH_CACHE, else `saebench` in the user's cache folder."""
    return Path(os.environ.get("SAEBENCH_CACHE") or user_cache() / "saebench")


def user_cache() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME, else `.cache` in the home folder, else (no home) one of temporary files."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"


def seal(data: bytes) -> bytes:
    """Append the data's sha256, so that a flipped bit or a truncated file is noticed by `unseal`."""
    return data + hashlib.sha256(data).digest()


def unseal(data: bytes) -> bytes | None:
    """The argument of `seal`; None if the checksum does not match."""
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    return body if hashlib.sha256(body).digest() == digest else None


def load_from_cache(path: Path, device: str = "cpu") -> dict[str, Tensor] | None:
    """The cached tensors by name; None if the file is missing, damaged or truncated."""
    try:
        body = unseal(path.read_bytes()) if path.is_file() else None
        return None if body is None else {name: tensor.to(device) for name, tensor in load(body).items()}
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def save_in_cache(path: Path, tensors: dict[str, Tensor]) -> None:
    """Cache tensors for later runs. A cache that cannot be written (full disk, no permission) is no error."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(seal(save({name: tensor.contiguous() for name, tensor in tensors.items()})))
        temporary.replace(path)
    except (OSError, SafetensorError):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
