"""SAEs that live elsewhere: `hf:REPO/PATH` on the Hugging Face hub, `saelens:RELEASE/ID` in sae-lens's registry.

Both become files on this machine, which are then read like any others.
"""

import hashlib
import os
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

from saebench.errors import SaebenchError, UsageError, one_line

_SCHEMES = ("hf:", "saelens:")
# Families whose conversion there leaves something out (decoder norms in the gate, ...) or is no SAE of one place.
_MISREAD = {"llama_scope", "llama_scope_r1_distill", "sparsify", "mntss_clt_layer_transcoder"}


def is_remote(spec: str) -> bool:
    """Whether `spec` names an SAE elsewhere rather than a path here."""
    return spec.startswith(_SCHEMES) and not Path(spec).exists()


def fetch(spec: str) -> Path:
    """The local path of a remote SAE's files, downloaded if need be.

    Raises:
        UsageError: the spec is malformed, or the package it needs is not installed.
        SaebenchError: it could not be had (offline, no such repository, no right to it).
    """
    scheme, _, rest = spec.partition(":")
    first, _, tail = rest.partition("/")
    if not first or not tail:
        raise UsageError(f"'{spec}': write hf:OWNER/REPO/PATH or saelens:RELEASE/ID")
    return _from_hub(rest) if scheme == "hf" else _from_saelens(first, tail)


def _from_hub(rest: str) -> Path:
    owner, repo, *inner = rest.split("/")
    if any(part in ("", ".", "..") for part in (owner, repo, *inner)):
        raise UsageError(f"'hf:{rest}': write hf:OWNER/REPO/PATH")
    try:
        from huggingface_hub import snapshot_download

        path = "/".join(inner)
        patterns = [path, f"{path}/*"] if inner else None
        root = Path(snapshot_download(f"{owner}/{repo}", allow_patterns=patterns))
    except ImportError as error:
        raise UsageError("hf: needs huggingface_hub: pip install huggingface_hub") from error
    except Exception as error:  # the hub's own errors, and every network's
        raise SaebenchError(
            f"hf:{rest} could not be had: {one_line(error, 160)}; check the name, the network, and `hf auth login`"
        ) from error
    found = root.joinpath(*inner)
    if not found.exists():
        raise SaebenchError(f"hf:{rest}: {owner}/{repo} has no such path")
    return found


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "saebench" / "saelens"


def _refuse_misread(release: str, identity: str) -> None:
    """Point at the files themselves where sae-lens's conversion of them is not exact."""
    try:
        loaders = import_module("sae_lens.loading.pretrained_sae_loaders")
        family = loaders.get_conversion_loader_name(release)
        place = "/".join(loaders.get_repo_id_and_folder_name(release, sae_id=identity))
    except Exception:  # another version of sae-lens, or an unknown release: from_pretrained says which
        return
    if family in _MISREAD:
        raise UsageError(
            f"saelens:{release}/{identity}: sae-lens does not convert {family} checkpoints exactly; use hf:{place}"
        )


def _from_saelens(release: str, identity: str) -> Path:
    """sae-lens's own loader, saved once in its current format: the conversion is theirs, not re-implemented here."""
    target = _cache() / hashlib.sha256(f"{release}/{identity}".encode()).hexdigest()[:24]
    if (target / "cfg.json").is_file():
        return target
    try:
        theirs_module = import_module("sae_lens")
    except ImportError as error:
        raise UsageError("saelens: needs the package sae-lens: pip install sae-lens") from error
    _refuse_misread(release, identity)
    try:
        theirs = theirs_module.SAE.from_pretrained(release, identity, device="cpu")
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=target.parent))
        theirs.save_model(fresh)
    except Exception as error:  # theirs, the hub's, and every network's
        raise SaebenchError(
            f"saelens:{release}/{identity} could not be had: {one_line(error, 160)}; check the names and the network"
        ) from error
    try:
        fresh.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(fresh, ignore_errors=True)
    return target
