"""SAELens checkpoints of every version: `cfg.json` and `sae_weights.safetensors`; the default format of `save_sae`.

Source: sae-lens 6.54.12 (saes/, loading/pretrained_sae_loaders.py, training/activation_scaler.py), each fact tested against
it. Training checkpoints have the same files, unfolded: their input scaling is in files beside them
(`activation_scaler.json`, `activation_whitening.safetensors`), and latents stay in the scaled space, as in its `encode`.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import CheckpointError, Layout, MissingError
from saebench.loading.readers import Config, SafetensorsFile, folder_of, shapes_of
from saebench.sae import (
    AbsTopK,
    Activation,
    Fact,
    Gated,
    JumpReLU,
    LayerNorm,
    Metadata,
    NoTransform,
    ReLU,
    TokenScale,
    TopK,
    Transform,
)

from . import saelens_legacy, saelens_write
from .saelens_write import WEIGHTS

_MATTERS = {
    "architecture", "k", "apply_b_dec_to_input", "normalize_activations", "rescale_acts_by_decoder_norm",
    "reshape_activations", "d_in", "d_sae", "d_out", "matryoshka_widths", "metadata",
}  # fmt: skip
# Device, precision, and keys that only training reads.
_HARMLESS = {
    "dtype", "device", "decoder_init_norm", "l1_coefficient", "l1_warm_up_steps", "lp_norm", "l0_coefficient",
    "l0_warm_up_steps", "jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode",
    "jumprelu_tanh_scale", "jumprelu_ste_to_input", "pre_act_loss_coefficient", "target_l0", "use_sparse_activations",
    "aux_loss_coefficient", "topk_threshold_lr", "use_matryoshka_aux_loss", "sae_lens_version",
    "sae_lens_training_version",
}  # fmt: skip
_TOPK = {"topk", "abstopk", "batchtopk", "matryoshka_batchtopk"}
_TRANSCODERS = {"transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"}
_ARCHITECTURES = {"standard", "jumprelu", "gated"} | _TOPK | _TRANSCODERS
_NORMALIZATIONS = {"none", "layer_norm", "constant_norm_rescale", "expected_average_only_in", "covariance_whitening"}


@dataclass
class _Parts:
    """The tensors of a checkpoint in SAELens's orientation, folded step by step into canonical form."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor | None
    b_dec: Tensor
    subtracts_b_dec: bool
    facts: list[Fact] = field(default_factory=list)

    def fold_norms(self) -> None:
        """Move the norms of decoder rows into the encoder; rows that are unit up to rounding stay unchanged."""
        norm = self.W_dec.norm(dim=-1)
        norm = torch.where((norm - 1).abs() <= 1e-6, 1.0, norm)
        if bool((norm == 1).all()):
            return
        self.W_enc.mul_(norm)
        self.W_dec.div_(norm[:, None])
        if self.b_enc is not None:
            self.b_enc.mul_(norm)

    def fold_scale(self, scale: float) -> None:
        """Fold in a factor on the encoder's input; latents and threshold are unchanged."""
        self.W_enc.mul_(scale)
        self.W_dec.div_(scale)
        self.b_dec.div_(scale)

    def fold_whitening(self, mean: Tensor, matrix: Tensor, inverse: Tensor) -> Tensor:
        """Fold in an encoder input of (x − mean) @ matrix; return the shift [d_sae] subtracted from every encoder bias."""
        folded = matrix @ self.W_enc.double()
        shift = torch.zeros(folded.shape[1]).double() if self.subtracts_b_dec else mean @ folded
        self.W_enc = folded.float()
        self.W_dec = (self.W_dec.double() @ inverse).float()
        self.b_dec = (self.b_dec.double() @ inverse + mean).float()
        if self.b_enc is not None:
            self.b_enc = (self.b_enc.double() - shift).float()
        return shift.float()


class SAELens(Format):
    """SAELens 6, before 6, and its training checkpoints."""

    name = "saelens"
    files = ("cfg.json", WEIGHTS)
    layouts = (Layout(WEIGHTS, ("cfg.json",), ("activation_scaler.json", "activation_whitening.safetensors")),)

    def matches(self, path: Path) -> bool:
        folder = folder_of(path, WEIGHTS)
        return folder is not None and (folder / "cfg.json").is_file() and "W_dec" in shapes_of(folder / WEIGHTS)

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """The SAE in the folder; see `Format.load`."""
        folder = folder_of(path, WEIGHTS)
        if folder is None:
            raise CheckpointError(f"{path}: {WEIGHTS} is missing")
        cfg = Config.read(folder / "cfg.json")
        weights = SafetensorsFile(folder / WEIGHTS)
        said = "apply_b_dec_to_input" in cfg.data
        if saelens_legacy.is_legacy(cfg):
            cfg = saelens_legacy.modern(cfg, options)
        else:
            cfg.check(_MATTERS, _HARMLESS, options)
            saelens_legacy.refuse_one_head(cfg.table("metadata"))
        if cfg.data.get("architecture") in ("temporal", "matching_pursuit"):
            raise CheckpointError(f"{cfg.path}: architecture '{cfg.data['architecture']}' has no canonical form")
        architecture = cfg.choice("architecture", _ARCHITECTURES)
        parts = _read_parts(cfg, weights, architecture, options)
        source = "cfg.json apply_b_dec_to_input" if said else "inferred: before version 6 SAELens always did"
        parts.facts.append(Fact("subtracts b_dec", str(parts.subtracts_b_dec).lower(), source))
        return _assemble(cfg, weights, architecture, parts, folder, options)

    def save(self, sae: SAE, path: Path) -> None:
        saelens_write.write(sae, path)


def _read_parts(cfg: Config, weights: SafetensorsFile, architecture: str, options: LoadOptions) -> _Parts:
    d_in, d_sae = weights.shape("W_enc", 2)
    d_out = weights.shape("b_dec", 1)[0]
    if d_out != d_in and architecture not in _TRANSCODERS:
        raise CheckpointError(f"{weights.path}: 'b_dec' has shape {(d_out,)}, expected {(d_in,)}")
    for key, size in (("d_in", d_in), ("d_sae", d_sae), ("d_out", d_out)):
        cfg.expect(key, size)
    _check_tensors(weights, architecture, options)
    b_enc = None if architecture == "gated" else weights.get("b_enc", d_sae)
    subtracts = cfg.boolean("apply_b_dec_to_input")
    if subtracts and architecture in _TRANSCODERS:
        raise CheckpointError(f"{cfg.path}: 'apply_b_dec_to_input' is true, which no transcoder can do")
    W_dec = weights.get("W_dec", d_sae, d_out)
    parts = _Parts(weights.get("W_enc", d_in, d_sae), W_dec, b_enc, weights.get("b_dec", d_out), subtracts)
    if "scaling_factor" in weights:
        _fold_finetuning(cfg, weights, parts)
    return parts


def _check_tensors(weights: SafetensorsFile, architecture: str, options: LoadOptions) -> None:
    known = {"W_enc", "W_dec", "b_dec", "scaling_factor"}
    known |= {"r_mag", "b_gate", "b_mag"} if architecture == "gated" else {"b_enc"}
    if "jumprelu" in architecture:
        known |= {"threshold", "log_threshold"}
    if "batchtopk" in architecture:
        known.add("topk_threshold")
    if "skip" in architecture:
        known.add("W_skip")
    weights.check(known, (), options)


def _fold_finetuning(cfg: Config, weights: SafetensorsFile, parts: _Parts) -> None:
    """Fold in the finetuning factors before version 6: one per latent, on the decoder side only."""
    factor = weights.get("scaling_factor", parts.W_dec.shape[0])
    if bool(torch.allclose(factor, torch.ones_like(factor))):
        return
    if not cfg.boolean("finetuning_scaling_factor", False):
        raise CheckpointError(f"{weights.path}: 'scaling_factor' is present, but 'finetuning_scaling_factor' is false")
    parts.W_dec.mul_(factor[:, None])
    parts.facts.append(Fact("latents are scaled before the decoder", "true", f"{WEIGHTS} scaling_factor"))


def _assemble(
    cfg: Config, weights: SafetensorsFile, architecture: str, parts: _Parts, folder: Path, options: LoadOptions
) -> SAE:
    if architecture in _TOPK:
        rescales = cfg.boolean("rescale_acts_by_decoder_norm", False)
        parts.facts.append(
            Fact("selects on pre·‖W_dec‖", str(rescales).lower(), "cfg.json rescale_acts_by_decoder_norm")
        )
        if rescales:
            parts.fold_norms()
    elif cfg.has("k"):
        raise CheckpointError(
            f"{cfg.path}: 'k' is {cfg.data['k']}, which has no meaning for architecture '{architecture}'"
        )
    elif cfg.data.get("rescale_acts_by_decoder_norm"):
        raise CheckpointError(f"{cfg.path}: 'rescale_acts_by_decoder_norm' is true, unknown for '{architecture}'")
    transform, shift = _normalization(cfg, parts, architecture, folder, options)
    activation = _activation(cfg, weights, architecture, parts, shift, options)
    d_sae = parts.W_dec.shape[0]
    skip = None
    if "skip" in architecture:
        skip = weights.get("W_skip", parts.W_dec.shape[1], parts.W_enc.shape[0]).T
    return SAE(
        parts.W_enc, parts.W_dec.contiguous(), torch.zeros(d_sae) if parts.b_enc is None else parts.b_enc, parts.b_dec,
        activation, parts.subtracts_b_dec, transform, skip,
        metadata=replace(
            _metadata(cfg, architecture, activation, d_sae, tuple(parts.facts)), dtype=weights.dtype
        ),
    )  # fmt: skip


def _normalization(
    cfg: Config, parts: _Parts, architecture: str, folder: Path, options: LoadOptions
) -> tuple[Transform, Tensor | None]:
    """(per-token transform, shift of gated biases); a transform by constants is folded into `parts`."""
    kind = cfg.choice("normalize_activations", _NORMALIZATIONS, "none")
    parts.facts.append(Fact("input normalization", kind, "cfg.json normalize_activations"))
    scaler = Config.read(folder / "activation_scaler.json") if (folder / "activation_scaler.json").is_file() else None
    scale = scaler.number("scaling_factor") if scaler else None
    if scale is not None and kind != "expected_average_only_in":
        raise CheckpointError(
            f"{folder / 'activation_scaler.json'}: contains a scale, but 'normalize_activations' is '{kind}'"
        )
    restores = architecture not in _TRANSCODERS
    if kind == "layer_norm":
        return LayerNorm(eps=1e-5, unbiased=True, eps_on_output=False, restores=restores), None
    if kind == "constant_norm_rescale":
        return TokenScale(restores=restores), None
    if kind in ("expected_average_only_in", "covariance_whitening") and not restores:
        raise CheckpointError(f"{cfg.path}: a transcoder with normalize_activations '{kind}' has no known meaning")
    if kind == "expected_average_only_in":
        source = "activation_scaler.json scaling_factor" if scale is not None else "--scale"
        scale = scale if scale is not None else options.scale
        if scale is None:
            raise MissingError(
                "scale",
                f"{cfg.path}: 'normalize_activations' is expected_average_only_in, but its scale "
                "(√d_in / mean ‖x‖ over its training data) was not saved",
            )
        if scale <= 0:
            raise CheckpointError(f"{folder}: the input scale is {scale}, expected a positive number")
        parts.fold_scale(scale)
        parts.facts.append(Fact("input scale", repr(scale), source))
    if kind == "covariance_whitening":
        return NoTransform(), _fold_whitening(folder, parts)
    return NoTransform(), None


def _fold_whitening(folder: Path, parts: _Parts) -> Tensor:
    path = folder / "activation_whitening.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder / 'cfg.json'}: normalizes by covariance_whitening, but {path.name} is missing")
    file, d = SafetensorsFile(path), parts.W_enc.shape[0]
    mean, matrix, inverse = file.get("mean", d), file.get("matrix", d, d), file.get("inverse_matrix", d, d)
    parts.facts.append(Fact("input whitening", "folded", path.name))
    return parts.fold_whitening(mean.double(), matrix.double(), inverse.double())


def _activation(
    cfg: Config,
    weights: SafetensorsFile,
    architecture: str,
    parts: _Parts,
    shift: Tensor | None,
    options: LoadOptions,
) -> Activation:
    d_sae = parts.W_dec.shape[0]
    if architecture in ("topk", "abstopk"):
        k = cfg.integer("k") or options.k
        if k is None:
            raise MissingError("k", f"{cfg.path}: 'k' is missing")
        parts.facts.append(Fact("k", str(k), "cfg.json k" if cfg.has("k") else "--k"))
        return TopK(k) if architecture == "topk" else AbsTopK(k)
    if "batchtopk" in architecture:
        threshold = weights.scalar("topk_threshold")
        if not threshold > 0:
            raise CheckpointError(
                f"{weights.path}: topk_threshold is {threshold}: it was never learned, and the SAE would act as a ReLU"
            )
        parts.facts.append(Fact("threshold", repr(threshold), f"{WEIGHTS} topk_threshold"))
        return JumpReLU(torch.tensor(threshold, dtype=torch.float64).float())
    if "jumprelu" in architecture:
        thresholds = _thresholds(weights, d_sae, parts)
        if "jumprelu_bandwidth" in cfg.data and bool((thresholds < 0).any()):  # no ReLU follows its gate
            raise CheckpointError(
                f"{weights.path}: refused, latents of a training checkpoint with negative thresholds may be negative"
            )
        return JumpReLU(thresholds)
    if architecture == "gated":
        r_mag, b_gate, b_mag = (weights.get(n, d_sae) for n in ("r_mag", "b_gate", "b_mag"))
        if shift is not None:
            b_gate, b_mag = b_gate - shift, b_mag - shift * r_mag.exp()
        return Gated(r_mag, b_gate, b_mag)
    return ReLU()


def _thresholds(weights: SafetensorsFile, d_sae: int, parts: _Parts) -> Tensor:
    if "log_threshold" in weights:
        if "threshold" in weights:
            raise CheckpointError(f"{weights.path}: has both 'threshold' and 'log_threshold'")
        parts.facts.append(Fact("threshold", "exp(log_threshold)", f"{WEIGHTS} log_threshold"))
        return weights.get("log_threshold", d_sae).exp()
    threshold = weights.get("threshold", d_sae)
    if bool((threshold == -1).all()):
        raise CheckpointError(f"{weights.path}: 'threshold' is -1 throughout: it was never learned")
    parts.facts.append(Fact("threshold", "linear", f"{WEIGHTS} threshold"))
    return threshold


def _metadata(cfg: Config, architecture: str, activation: Activation, d_sae: int, facts: tuple[Fact, ...]) -> Metadata:
    meta = cfg.table("metadata")
    training = meta.text("training_architecture")
    details = meta.table("training_architecture_details")
    widths = cfg.data.get("matryoshka_widths") or details.data.get("matryoshka_widths")
    declared = getattr(activation, "k", None)
    if declared is None:
        declared = cfg.number("k") if "batchtopk" in architecture else details.number("k")
    reshape = cfg.choice("reshape_activations", {"none", "hook_z"}, "none")
    if reshape == "hook_z":
        facts += (Fact("heads", "flattened: [n_heads · d_head]", "cfg.json reshape_activations"),)
    return Metadata(
        architecture=training or architecture, model=meta.text("model_name"), hook=meta.text("hook_name"),
        hook_out=meta.text("hook_name_out"), context_length=meta.integer("context_size"),
        prepend_bos=meta.boolean("prepend_bos") if meta.has("prepend_bos") else None,
        training_tokens=meta.integer("training_tokens"), declared_l0=declared,
        group_sizes=_groups(cfg, widths, d_sae), transcoder=architecture in _TRANSCODERS, facts=facts,
    )  # fmt: skip


def _groups(cfg: Config, widths: Any, d_sae: int) -> tuple[int, ...] | None:
    """Group widths from SAELens's cumulative widths of Matryoshka prefixes, of which the last may be missing."""
    if not widths:
        return None
    if not isinstance(widths, list) or any(type(w) is not int for w in widths):
        raise CheckpointError(f"{cfg.path}: 'matryoshka_widths' is not a list of whole numbers")
    edges = [0, *widths] if widths[-1] == d_sae else [0, *widths, d_sae]
    groups = tuple(b - a for a, b in pairwise(edges))
    if min(groups) <= 0:
        raise CheckpointError(f"{cfg.path}: 'matryoshka_widths' {widths} do not rise to {d_sae}")
    return groups


@hookimpl
def saebench_formats() -> list[Format]:
    return [SAELens()]
