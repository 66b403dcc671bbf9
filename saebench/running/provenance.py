"""Provenance of a number: code, libraries, machine. Recorded with every run, never part of its identity."""

import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import saebench
from saebench.arithmetic.linear import onednn
from saebench.arithmetic.precision import processor_name

LIBRARIES = ("torch", "transformers", "safetensors", "numpy", "scipy", "pandas", "tokenizers")


@cache
def _commit() -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout that saebench runs from; (None, None) when it runs from a wheel."""
    root = Path(saebench.__file__).resolve().parent.parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None, None
        # Records land in results/ as they are made; only code that differs makes a run dirty.
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "saebench", "plugins", "tasks"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, commit, device: plain values only, nothing that names a user or a folder."""
    commit, dirty = _commit()
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "saebench": saebench.__version__,
        "commit": commit,
        "dirty": dirty,
        "python": sys.version.split()[0],
        "libraries": {name: _version(name) for name in LIBRARIES},
        "device": device.type,
        "chip": chip,
        "threads": torch.get_num_threads(),
        "float32_linear": "onednn" if device.type == "cpu" and onednn() else "torch",
    }
