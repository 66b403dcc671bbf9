"""Settings that a run takes from the machine it begins on: precisions and contexts a forward pass.

They are part of the run's identity in run.json. A resumed or repeated run keeps them, so that its bits repeat on a machine that
would choose otherwise.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from saebench.arithmetic.precision import product_dtype
from saebench.training.baselines import BASELINES
from saebench.training.request import SaeSpec, TrainRequest


def settled(request: TrainRequest, device: str, begun: Mapping[str, Any] | None = None) -> TrainRequest:
    """The request with no choice left open: `dtype`, `context_batch` and each recipe's `dtype` have values.

    Args:
        device: the one it runs on.
        begun: the identity of the run that the folder already holds; its choices come before the machine's.
    """
    begun = begun or {}
    saes = begun.get("saes")
    known: Mapping[str, Any] = saes if isinstance(saes, Mapping) else {}
    return replace(
        request,
        dtype=request.dtype or begun.get("dtype") or product_dtype(device),
        context_batch=request.context_batch or begun.get("context_batch") or default_context_batch(device),
        saes=tuple(_settled(sae, device, known.get(sae.name)) for sae in request.saes),
    )


def _settled(sae: SaeSpec, device: str, begun: Any) -> SaeSpec:
    if sae.recipe in BASELINES or "dtype" in sae.settings:
        return sae
    kept = begun["settings"].get("dtype") if isinstance(begun, Mapping) else None
    return replace(sae, settings={**sae.settings, "dtype": kept or product_dtype(device)})


def default_context_batch(device: str) -> int:
    """Contexts a forward pass: the fastest measured (16 and 32 are alike on a CPU)."""
    return 16 if device.startswith("cpu") else 64
