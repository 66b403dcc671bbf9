"""Calibration before the pass: the usual activation at a hook point, and a check of the SAE's declared L0 there.

The model runs the task's first contexts up to the hook point once. They fix the norm above which a token is not scored, and the
mean that mean ablation substitutes; each SAE's L0 is measured on a sample of them.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from saebench.cache import load_from_cache, save_in_cache
from saebench.corpus import Contexts
from saebench.errors import NonFiniteError, SaebenchError, is_out_of_memory
from saebench.hookpoint import HookPoint
from saebench.models import require_tokens
from saebench.sae import SAE
from saebench.source import Source

# Raised when a number computed here or in ablation.py changes, which makes older caches invalid.
CACHE_VERSION = "1"
CONTEXTS = 32
SAMPLE = 1024


@dataclass(frozen=True)
class Calibration:
    """Statistics of a hook point over the calibration contexts.

    Attributes:
        median_norm: median ‖x‖ over their tokens that are not special.
        threshold: tokens with a larger ‖x‖ are not scored; infinite where the task sets no max_norm.
        mean: [d_out] float32, mean of x over the tokens within the threshold.
        sample: [≤ 1024, d_in] float32, activations that SAEs read there, evenly taken from the same tokens.
    """

    median_norm: float
    threshold: float
    mean: Tensor
    sample: Tensor

    def scored(self, x: Tensor, special: Tensor) -> Tensor:
        """[B, T] bool, the scored tokens: not special, and with a norm within the threshold."""
        inside: Tensor = x.float().norm(dim=-1) <= self.threshold
        return ~special & inside


def calibrate(
    subject: Source,
    contexts: Contexts,
    read: HookPoint,
    write: HookPoint,
    max_norm: float | None,
    batch_size: int,
    cache: Path,
) -> Calibration:
    """Calibrate on the first contexts, or load the cached result for the same model, place and text.

    Raises:
        UsageError: the model has no position or no embedding for a token.
        SaebenchError: activations are not finite, or no token is left.
    """
    require_tokens(subject.loaded, contexts.token_ids)
    head = contexts.head(CONTEXTS)
    key = "|".join(
        (CACHE_VERSION, subject.loaded.sha256, subject.dtype, str(read), str(write), str(max_norm), head.fingerprint())
    )
    path = cache / "calibration" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    found = load_from_cache(path, str(subject.device))
    if found is not None and (cached := _cached(found)):
        return cached
    result = None
    while result is None:
        try:
            result = _calibrate(subject, head, read, write, max_norm, batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise SaebenchError(f"not even one context fits into the memory of {subject.device}") from error
            batch_size //= 2
    tensors = {
        "median": torch.tensor(result.median_norm, dtype=torch.float64),
        "threshold": torch.tensor(result.threshold, dtype=torch.float64),
        "mean": result.mean.cpu(),
        "sample": result.sample.cpu().contiguous(),
    }
    save_in_cache(path, tensors)
    return result


def _cached(found: dict[str, Tensor]) -> Calibration | None:
    """A cached calibration; None where the file holds other tensors."""
    shapes = {"median": 0, "threshold": 0, "mean": 1, "sample": 2}
    if {name: tensor.ndim for name, tensor in found.items()} != shapes:
        return None
    return Calibration(float(found["median"]), float(found["threshold"]), found["mean"], found["sample"])


def _calibrate(
    subject: Source, head: Contexts, read: HookPoint, write: HookPoint, max_norm: float | None, batch_size: int
) -> Calibration:
    ids = torch.from_numpy(head.token_ids).to(subject.device)
    normal = ~torch.from_numpy(head.special).to(subject.device)
    pairs = [subject.capture(chunk, read, write) for chunk in ids.split(batch_size)]
    x_read = torch.cat([p[0] for p in pairs])[normal].float()
    x = torch.cat([p[1] for p in pairs])[normal].float()
    if not bool(torch.isfinite(x).all() and torch.isfinite(x_read).all()):
        raise NonFiniteError(
            f"activations of {subject.loaded.id} at {write} are not finite in {subject.dtype}: try --dtype float32"
        )
    norms = x.norm(dim=-1)
    if not len(norms):
        raise SaebenchError("the calibration contexts hold nothing but special tokens")
    # The mean of the two middle norms, as numpy has it; torch's median takes the lower one.
    median = float(norms.double().quantile(0.5)) if len(norms) < 2**24 else float(norms.median())
    threshold = math.inf if max_norm is None else max_norm * median
    inside = norms <= threshold
    mean = x[inside].mean(0, dtype=torch.float64).float()
    rows = x_read[inside]
    evenly = torch.linspace(0, len(rows) - 1, min(SAMPLE, len(rows)), device=rows.device).long()
    return Calibration(median, threshold, mean, rows[evenly])


def check_l0(sae: SAE, calibration: Calibration) -> float:
    """The SAE's mean L0 on the calibration sample.

    Raises:
        SaebenchError: it differs from the L0 the checkpoint declares by more than a factor of two, as with a
            misread activation, scale or hook point.
    """
    measured = float(sae.encode(calibration.sample).counts().double().mean())
    declared = sae.metadata.declared_l0
    if declared and not declared / 2 <= measured <= declared * 2:
        raise SaebenchError(
            f"{sae.metadata.path}: {measured:.1f} latents fire per token where the checkpoint declares {declared:g}: "
            "wrong hook point, wrong scale or a misread format (see `saebench inspect`; --hook, --scale, --model override)"
        )
    return measured
