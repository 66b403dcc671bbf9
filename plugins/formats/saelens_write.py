"""Write SAELens 6 checkpoints, the default of `save_sae`; an SAE that SAELens cannot compute exactly is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saebench import SAE
from saebench.format import CheckpointError
from saebench.sae import AbsTopK, Activation, Gated, JumpReLU, LayerNorm, NoTransform, ReLU, TokenScale, TopK

WEIGHTS = "sae_weights.safetensors"


def write(sae: SAE, path: Path) -> None:
    """Write `sae` as SAELens 6.

    Raises:
        CheckpointError: SAELens has no equivalent architecture or normalization.
    """
    architecture, extra, tensors = _as_saelens(sae)
    meta = sae.metadata
    metadata: dict[str, Any] = {
        "sae_lens_version": "6.54.12", "sae_lens_training_version": None, "model_name": meta.model,
        "hook_name": meta.hook, "hook_name_out": meta.hook_out, "prepend_bos": meta.prepend_bos,
        "context_size": meta.context_length, "training_tokens": meta.training_tokens,
        "training_architecture": meta.architecture,
    }  # fmt: skip
    if meta.group_sizes or meta.declared_l0 is not None:
        widths = torch.tensor(meta.group_sizes or ()).cumsum(0).tolist()
        metadata["training_architecture_details"] = {"k": meta.declared_l0} | (
            {"matryoshka_widths": widths} if widths else {}
        )
    # A float16 SAE (`sae.to(device, torch.float16)`) is written in float16, with that dtype in the config.
    dtype = torch.float16 if sae.W_enc.dtype == torch.float16 else torch.float32
    cfg = {
        "architecture": architecture, "d_in": sae.d_in, "d_sae": sae.d_sae, "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtracts_b_dec, "normalize_activations": _normalization_name(sae),
        "reshape_activations": "none", **extra,
        "metadata": {k: v for k, v in metadata.items() if v is not None},
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    plain = {name: t.detach().to("cpu", dtype).contiguous() for name, t in tensors.items()}
    _replace(path / WEIGHTS, lambda target: save_file(plain, target))
    _replace(path / "cfg.json", lambda target: target.write_text(json.dumps(cfg, indent=1) + "\n"))


def _replace(target: Path, write_to: Callable[[Path], Any]) -> None:
    """Write beside, then rename: a loaded SAE may still be memory-mapped from the old file."""
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write_to(fresh)
        fresh.chmod(0o644)  # safetensors creates files that only their owner may read
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def _normalization_name(sae: SAE) -> str:
    transcoder = sae.is_transcoder or sae.d_in != sae.d_out or sae.W_skip is not None
    for name, transform in (
        ("none", NoTransform()),
        ("layer_norm", LayerNorm(restores=not transcoder)),
        ("constant_norm_rescale", TokenScale(restores=not transcoder)),
    ):
        if sae.transform == transform:
            return name
    raise CheckpointError(
        f"SAELens has no normalization that computes {sae.transform}; this SAE cannot be written exactly"
    )


def _as_saelens(sae: SAE) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """SAELens's name of the architecture, the config keys it needs, and its tensors."""
    tensors = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    activation, extra = sae.activation, {}
    if isinstance(activation, Gated):
        # SAELens's gated SAE has no bias before its two paths, so b_enc moves into the biases of the paths.
        b_gate = activation.b_gate + sae.b_enc
        b_mag = activation.b_mag + activation.r_mag.exp() * sae.b_enc
        tensors |= {"r_mag": activation.r_mag, "b_gate": b_gate, "b_mag": b_mag}
        architecture = "gated"
    else:
        tensors["b_enc"] = sae.b_enc
        architecture = _architecture(activation)
    if isinstance(activation, JumpReLU):
        tensors["threshold"] = activation.threshold.expand(sae.d_sae).clone()
    if isinstance(activation, TopK | AbsTopK):
        extra = {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    if sae.is_transcoder or sae.d_in != sae.d_out or sae.W_skip is not None:
        architecture = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}.get(architecture, "")
        if not architecture or sae.subtracts_b_dec:
            raise CheckpointError("SAELens has no transcoder of this activation; this SAE cannot be written exactly")
        if sae.W_skip is not None:
            architecture = architecture.replace("transcoder", "skip_transcoder")
            tensors["W_skip"] = sae.W_skip.T
        extra["d_out"] = sae.d_out
    return architecture, extra, tensors


def _architecture(activation: Activation) -> str:
    for kind, name in ((ReLU, "standard"), (TopK, "topk"), (AbsTopK, "abstopk"), (JumpReLU, "jumprelu")):
        if isinstance(activation, kind):
            return name
    kind_name = type(activation).__name__
    raise CheckpointError(f"SAELens has no architecture that computes {kind_name}; this SAE cannot be written exactly")
