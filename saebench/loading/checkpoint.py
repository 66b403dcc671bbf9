"""Load and save checkpoints: choose the format, then apply the checks that hold for every format.

A format plugin turns files into an `SAE` (saebench/sae.py) and never guesses: a required value that the checkpoint lacks
(a k, a scale) is an error that names the option which supplies it.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from saebench.errors import SaebenchError, UsageError, one_line
from saebench.format import CheckpointError, Format, LoadOptions
from saebench.hookpoint import HookPoint
from saebench.loading.readers import finite
from saebench.loading.recognise import Checkpoint, recognise
from saebench.loading.remote import fetch, is_remote
from saebench.registry import registry
from saebench.sae import SAE


def load_sae(
    path: str | Path | Checkpoint,
    *,
    format: str | None = None,
    k: int | None = None,
    scale: float | None = None,
    hook: str | None = None,
    model: str | None = None,
    ignore_keys: Collection[str] = (),
    device: str = "cpu",
) -> SAE:
    """Load an SAE checkpoint of any known format exactly, or raise.

    Args:
        path: a checkpoint file or folder, `hf:REPO/PATH` for one on the Hugging Face hub, or `saelens:RELEASE/ID` for
            one that sae-lens has registered (needs `pip install sae-lens`).
        format: the format's name; None recognises it from the files.
        k, scale, ignore_keys: see `LoadOptions`.
        hook, model: hook point and language model, in place of those that the checkpoint names.
        device: a torch device for the tensors.

    Raises:
        UsageError: no such path, unknown format, or an option that the checkpoint contradicts or does not use.
        CheckpointError: no format or several match, files are damaged or missing, or the checkpoint cannot be read exactly.
    """
    local, source = fetch(str(path)) if is_remote(str(path)) else (Path(path), str(path))
    _require_there(local)
    known = path.format if isinstance(path, Checkpoint) else None
    chosen: Format = registry().get("formats", format) if format else known or recognise(local)
    options = LoadOptions(k, scale, frozenset(ignore_keys))
    sae = read_as(chosen, local, options)
    meta = replace(sae.metadata, format=chosen.name, path=source)
    if hook:
        meta = replace(meta, hook=str(HookPoint.parse(hook)))
    if model:
        meta = replace(meta, model=model)
    return replace(sae, metadata=meta).to(device)


def _require_there(path: Path) -> None:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"no such file or folder: {path}") from None
    except (OSError, ValueError) as error:  # no permission, a name that is too long, a NUL in it
        raise CheckpointError(f"{path}: cannot be read: {one_line(error)}") from error


def save_sae(sae: SAE, path: str | Path, format: str = "saelens") -> None:
    """Write an SAE into a folder, in a format that other tools read.

    Args:
        sae: the SAE.
        path: the folder, created if missing; each existing file of the same name is replaced atomically.
        format: the name of a format that can be written.

    Raises:
        CheckpointError: the format cannot hold this SAE exactly.
        UsageError: unknown or read-only format.
    """
    chosen: Format = registry().get("formats", format)
    check_sae(sae, Path(path))
    try:
        chosen.save(sae, Path(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {one_line(error)}") from error


def read_as(chosen: Format, path: Path, options: LoadOptions) -> SAE:
    """Read the SAE at `path` with one format and check it; any failure on a damaged file becomes a CheckpointError.

    Raises:
        UsageError: an option that the checkpoint contradicts or does not use.
        CheckpointError: the checkpoint cannot be read exactly.
    """
    try:
        sae = chosen.load(path, options)
        check_sae(sae, path)
        _check_used(sae, options, path)
    except SaebenchError:
        raise
    except (Exception, MemoryError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as {chosen.name}: {type(error).__name__}: {one_line(error)}"
        ) from error
    return sae


def check_sae(sae: SAE, path: Path) -> None:
    """Check an SAE of any format: nonempty, finite floating-point weights, and 1 ≤ k ≤ d_sae.

    Raises:
        CheckpointError: a check fails.
    """
    if not sae.d_in or not sae.d_sae or not sae.d_out:
        raise CheckpointError(f"{path}: an SAE of {sae.d_in} inputs and {sae.d_sae} latents is empty")
    for name, tensor in sae.tensors():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, expected floating point weights")
        if not finite(tensor):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged")
    k = getattr(sae.activation, "k", None)
    if k is not None and not 1 <= k <= sae.d_sae:
        raise CheckpointError(f"{path}: k is {k}, but the SAE has {sae.d_sae} latents")


def _check_used(sae: SAE, options: LoadOptions, path: Path) -> None:
    """Refuse an option that the checkpoint does not use: the user misunderstands the SAE, so its numbers would mislead."""
    k = getattr(sae.activation, "k", None)
    if options.k is not None and options.k != k:
        reason = "is no TopK SAE" if k is None else f"has k = {k}"
        raise UsageError(f"--k {options.k}: {path} {reason}: leave it out")
    if options.scale is not None and not any(fact.source == "--scale" for fact in sae.metadata.facts):
        raise UsageError(f"--scale {options.scale}: {path} needs no scale: leave it out")
