"""Llamascopium (once lm-saes; Llama Scope R1-Distill): `config.json` and `sae_weights.safetensors`.

Source: llamascopium 2.0.0b34 and its repository's history. Activations are scaled to norm √d before `encode` and back after
`decode`; latents equal those of its `encode`, in that space. The gate reads pre·‖W_dec‖, the latent is pre. Older files
name the encoder `encoder.weight`, newer ones `W_E`; the JumpReLU threshold is stored as its logarithm.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import CheckpointError, Layout, MissingError
from saebench.loading.readers import Config, SafetensorsFile, folder_of, shapes_of
from saebench.sae import Activation, Fact, JumpReLU, Metadata, NormTopK, NoTransform, ReLU, TokenScale, TopK, Transform

_WEIGHTS = "sae_weights.safetensors"
_NORM = "dataset_average_activation_norm."
_MATTERS = {
    "sae_type", "hook_point_in", "hook_point_out", "d_model", "d_sae", "expansion_factor", "use_decoder_bias", "act_fn",
    "norm_activation", "sparsity_include_decoder_norm", "top_k", "use_glu_encoder", "apply_decoder_bias_to_pre_encoder",
}  # fmt: skip
_HARMLESS = {
    "sae_pretrained_name_or_path", "strict_loading", "use_triton_kernel", "sparsity_threshold_for_triton_spmm_kernel",
    "sparsity_threshold_for_csr", "circuit_tracing_mode", "jumprelu_threshold_window", "promote_act_fn_dtype",
    "force_unit_decoder_norm", "jump_relu_threshold", "device", "dtype",
}  # fmt: skip


class Llamascopium(Format):
    """Llamascopium, formerly lm-saes; Llama Scope R1-Distill."""

    name = "llamascopium"
    files = ("config.json", _WEIGHTS)
    layouts = (Layout(_WEIGHTS, ("config.json",)),)

    def matches(self, path: Path) -> bool:
        folder = folder_of(path, _WEIGHTS)
        if folder is None or not (folder / "config.json").is_file():
            return False
        return bool({"W_E", "encoder.weight"} & shapes_of(folder / _WEIGHTS).keys())

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """The SAE in the folder; see `Format.load`."""
        folder = folder_of(path, _WEIGHTS)
        if folder is None:
            raise CheckpointError(f"{path}: {_WEIGHTS} is missing")
        cfg, file = Config.read(folder / "config.json"), SafetensorsFile(folder / _WEIGHTS)
        cfg.check(_MATTERS, _HARMLESS, options)
        cfg.choice("sae_type", {"sae"}, "sae")
        if cfg.boolean("use_glu_encoder", False):
            raise CheckpointError(
                f"{cfg.path}: 'use_glu_encoder' is true: an encoder of two matrices has no canonical form"
            )
        return _build(cfg, file, options)


def _matrices(cfg: Config, file: SafetensorsFile, options: LoadOptions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W_E [d_in, d_sae], W_D [d_sae, d_in], b_E, b_D, under either set of names."""
    biased = cfg.boolean("use_decoder_bias", True)
    linear = "encoder.weight" in file
    names = (
        ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias") if linear else ("W_E", "b_E", "W_D", "b_D")
    )
    thresholds = {"log_jumprelu_threshold", "activation_function.log_jumprelu_threshold"}
    allowed = set(names if biased else names[:3])
    allowed |= thresholds if cfg.data.get("act_fn") == "jumprelu" else set()
    allowed |= {name for name in file.shapes if name.startswith(_NORM)}
    file.check(allowed, (), options)
    if linear:
        d_sae, d_in = file.shape(names[0], 2)
        W_E, W_D = file.get(names[0], d_sae, d_in).T, file.transposed(names[2], d_in, d_sae)
    else:
        d_in, d_sae = file.shape(names[0], 2)
        W_E, W_D = file.get(names[0], d_in, d_sae), file.get(names[2], d_sae, d_in).contiguous()
    return W_E, W_D, file.get(names[1], d_sae), file.get(names[3], d_in) if biased else torch.zeros(d_in)


def _build(cfg: Config, file: SafetensorsFile, options: LoadOptions) -> SAE:
    W_E, W_D, b_E, b_D = _matrices(cfg, file, options)
    d_in, d_sae = W_E.shape
    cfg.expect("d_model", d_in)
    cfg.expect("d_sae", d_sae)
    hook, hook_out = cfg.text("hook_point_in"), cfg.text("hook_point_out")
    hook_out = hook_out or hook
    facts: list[Fact] = []
    transform, s_in, s_out = _normalization(cfg, file, d_in, hook, hook_out, facts)
    gated = cfg.boolean("sparsity_include_decoder_norm", True)
    facts.append(Fact("decoder norms in the gate", str(gated).lower(), "config.json sparsity_include_decoder_norm"))
    norm = W_D.norm(dim=1) if gated else None
    activation = _activation(cfg, file, d_sae, norm, facts, options)
    subtracts = cfg.boolean("apply_decoder_bias_to_pre_encoder", False)
    facts.append(Fact("subtracts b_dec", str(subtracts).lower(), "config.json apply_decoder_bias_to_pre_encoder"))
    if subtracts:  # folded into the encoder's bias, since input and output scales may differ
        b_E = b_E - b_D @ W_E
    return SAE(
        W_E.mul_(s_in) if s_in != 1 else W_E, W_D.div_(s_out) if s_out != 1 else W_D, b_E, b_D / s_out, activation,
        False, transform,
        metadata=Metadata(dtype=file.dtype,
            architecture=cfg.text("act_fn") or "unknown", hook=hook, hook_out=hook_out if hook_out != hook else None,
            declared_l0=getattr(activation, "k", None), facts=tuple(facts),
        ),
    )  # fmt: skip


def _normalization(
    cfg: Config, file: SafetensorsFile, d_in: int, hook: str | None, hook_out: str | None, facts: list[Fact]
) -> tuple[Transform, float, float]:
    kind = cfg.choice("norm_activation", {"token-wise", "batch-wise", "dataset-wise", "inference"})
    facts.append(Fact("input normalization", kind, "config.json norm_activation"))
    if kind == "inference":
        return NoTransform(), 1.0, 1.0
    if kind == "token-wise" and hook == hook_out:
        return TokenScale(), 1.0, 1.0
    if kind != "dataset-wise":
        raise CheckpointError(
            f"{cfg.path}: 'norm_activation' is {kind}: it depends on the batch or on the target, so it has no canonical form"
        )
    scales = []
    for place in (hook, hook_out):
        name = f"{_NORM}{place}"
        value = file.scalar(name)
        if not 0 < value < math.inf:
            raise CheckpointError(f"{file.path}: '{name}' is {value}, expected a positive norm")
        scales.append(math.sqrt(d_in) / value)
        facts.append(Fact(f"scale at {place}", repr(scales[-1]), f"{_WEIGHTS} {name}"))
    return NoTransform(), scales[0], scales[1]


def _activation(
    cfg: Config, file: SafetensorsFile, d_sae: int, norm: Tensor | None, facts: list[Fact], options: LoadOptions
) -> Activation:
    kind = cfg.choice("act_fn", {"relu", "topk", "jumprelu", "batchtopk"})
    if kind == "batchtopk":
        raise CheckpointError(
            f"{cfg.path}: 'act_fn' is batchtopk, which has no threshold: convert the SAE to jumprelu with llamascopium"
        )
    if kind == "relu":
        return ReLU()
    if kind == "jumprelu":
        name = "log_jumprelu_threshold"
        name = name if name in file else f"activation_function.{name}"
        threshold = file.get(name, d_sae).exp()
        facts.append(Fact("threshold", f"exp({name})", _WEIGHTS))
        return JumpReLU(threshold if norm is None else threshold / norm)
    k = cfg.integer("top_k") or options.k
    if k is None:
        raise MissingError("k", f"{cfg.path}: 'top_k' is missing")
    facts.append(Fact("k", str(k), "config.json top_k" if cfg.has("top_k") else "--k"))
    return TopK(k) if norm is None else NormTopK(k, norm)


@hookimpl
def saebench_formats() -> list[Format]:
    return [Llamascopium()]
