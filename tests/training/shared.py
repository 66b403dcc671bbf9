"""Helpers of the tests of training runs."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

import saebench
from saebench.errors import NonFiniteError
from saebench.training.checkpoints import RunFolder
from saebench.training.request import TrainRequest

from .conftest import HOOK

Make = Callable[..., TrainRequest]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an SAE on disk."""
    return load_file(folder / "sae_weights.safetensors")


def losses(folder: Path) -> list[float]:
    """The losses in a run's log."""
    return [line["loss"] for line in RunFolder(folder).read_log() if "loss" in line]


def no_sae() -> saebench.SAE:
    """Fail as the export of an SAE that has NaN does."""
    raise NonFiniteError("W_dec is not finite")


def command(recipe: str, model: Path, ids: Path, out: Path) -> list[str]:
    """`saebench train RECIPE` on the tiny model and text."""
    options = {
        "model": model,
        "hook": HOOK,
        "width": 48,
        "k": 4,
        "data": ids,
        "batch-size": 1000,
        "device": "cpu",
        "out": out,
    }
    return ["train", recipe, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
