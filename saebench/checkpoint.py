"""From a path to a canonical SAE: which format it is, and the checks that hold for every format.

A format plugin turns files into an `SAE` (saebench/sae.py). What it must never do is guess: whatever the checkpoint needs
and does not hold (a k, a scale) is an error that names the option which supplies it.
"""

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saebench.errors import SaebenchError, UsageError, one_line
from saebench.hookpoint import HookPoint
from saebench.registry import registry
from saebench.sae import SAE, TopK


@dataclass(frozen=True)
class LoadOptions:
    """What the user supplies for what a checkpoint does not say.

    Attributes:
        k: active latents per token, for a TopK checkpoint that does not hold it.
        scale: what activations are multiplied by before the encoder, for a checkpoint that needs and does not hold it.
        ignore_keys: config keys the format does not know and the user vouches for.
    """

    k: int | None = None
    scale: float | None = None
    ignore_keys: frozenset[str] = frozenset()


class Format(ABC):
    """A checkpoint format: recognises its files and turns them into a canonical SAE."""

    name: ClassVar[str]

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Whether the files at `path` (a file or a folder) are of this format; looks at names and shapes, never raises."""

    @abstractmethod
    def load(self, path: Path, options: LoadOptions) -> SAE:
        """The SAE at `path`, in CPU memory.

        Raises:
            CheckpointError: damaged, ambiguous or incomplete; says which file and key, and which option would help.
        """


class CheckpointError(SaebenchError):
    """A checkpoint that cannot be read exactly."""


def load_sae(
    path: str | Path,
    *,
    format: str | None = None,
    k: int | None = None,
    scale: float | None = None,
    hook: str | None = None,
    model: str | None = None,
    ignore_keys: Collection[str] = (),
    device: str = "cpu",
) -> SAE:
    """Load any SAE checkpoint exactly, or raise.

    Args:
        path: a checkpoint file or folder.
        format: the format's name; None recognises it from the files.
        k, scale, ignore_keys: see `LoadOptions`.
        hook, model: override what the checkpoint says about where it was trained.
        device: where the tensors go.

    Raises:
        UsageError: no such path, unknown format.
        CheckpointError: no format or several match, or the checkpoint cannot be read exactly.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}")
    chosen = registry().get("formats", format) if format else _recognise(path)
    options = LoadOptions(k, scale, frozenset(ignore_keys))
    try:
        sae: SAE = chosen.load(path, options)
    except SaebenchError:
        raise
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as {chosen.name}: {type(error).__name__}: {one_line(error)}"
        ) from error
    check_sae(sae, path)
    meta = replace(sae.metadata, format=chosen.name, path=str(path))
    if hook:
        meta = replace(meta, hook=str(HookPoint.parse(hook)))
    if model:
        meta = replace(meta, model=model)
    return replace(sae, metadata=meta).to(device)


def _recognise(path: Path) -> Format:
    formats = registry().formats
    found = [f for f in formats.values() if f.matches(path)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(
            f"{path}: no format recognises it (known: {', '.join(sorted(formats))}); "
            "check the path, or name the format with --format"
        )
    names = ", ".join(sorted(f.name for f in found))
    raise CheckpointError(f"{path}: could be {names}; choose one with --format")


def check_sae(sae: SAE, path: Path) -> None:
    """What must hold for every SAE, whatever its format: finite floating weights and a k that exists.

    Raises:
        CheckpointError: it does not hold.
    """
    for name, tensor in sae.tensors():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, expected floating point weights")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged")
    if isinstance(sae.activation, TopK) and not 1 <= sae.activation.k <= sae.d_sae:
        raise CheckpointError(f"{path}: k is {sae.activation.k}, but the SAE has {sae.d_sae} latents")


# --- reading files, for formats --------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes from a safetensors header; empty if the file is not readable."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return {}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped, float16 and bfloat16 widened to float32.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: widen(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors: {one_line(error)}") from error


def read_torch(path: Path) -> dict[str, Any]:
    """The dictionary inside a torch file, with `weights_only`: tensors and plain values, never code.

    Raises:
        CheckpointError: missing, damaged, or it needs more than tensors.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except Exception as error:  # torch raises a dozen types for a damaged pickle
        raise CheckpointError(f"{path}: not readable as torch weights: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(value).__name__}")
    return value


def widen(tensor: Tensor) -> Tensor:
    """float16, bfloat16 and float64 as float32, the SAE's own dtype; others as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def check_keys(
    config: Mapping[str, Any],
    known: Collection[str],
    options: LoadOptions,
    path: Path,
) -> None:
    """Refuse a config key the format does not know: it may change every number.

    Raises:
        CheckpointError: names the key and the option that overrides.
    """
    strange = sorted(set(config) - set(known) - options.ignore_keys)
    if strange:
        raise CheckpointError(
            f"{path}: unknown key '{strange[0]}' may change what the SAE computes; "
            f"if it does not, pass --ignore-key {strange[0]}"
        )


def take(tensors: Mapping[str, Tensor], path: Path, **shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The named tensors, with the shapes they must have (name=shape).

    Raises:
        CheckpointError: one is missing or has another shape.
    """
    for name, shape in shapes.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: tensor '{name}' is missing")
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"{path}: '{name}' has shape {tuple(tensors[name].shape)}, expected {shape}")
    return tuple(tensors[name] for name in shapes)
