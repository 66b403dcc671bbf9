"""Llama Scope (arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`.

Source: the OpenMOSS repository at that release (commit 4ec6f0aa, sae.py `from_config`). Weights are stored in the space
where activations have norm √d. Loading transforms them to the model's space, then moves the decoder norms into the encoder.
`jump_relu_threshold` applies after that: in the model's units, for a unit decoder. The language model is `model_name` in
`lm_config.json` (config.py `LanguageModelConfig.save_lm_config`).
"""

import math
from pathlib import Path

import torch

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import CheckpointError, Layout, MissingError
from saebench.loading.readers import Config, SafetensorsFile, TorchFile, Weights
from saebench.sae import Activation, Fact, JumpReLU, Metadata, ReLU, TopK

_LANGUAGE_MODEL = "lm_config.json"
# In the library's order of preference.
_FILES = ("sae_weights", "checkpoints/pruned", "checkpoints/final")
_TENSORS = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
_MATTERS = {
    "hook_point_in", "hook_point_out", "d_model", "d_sae", "expansion_factor", "act_fn", "jump_relu_threshold", "top_k",
    "norm_activation", "dataset_average_activation_norm", "use_decoder_bias", "apply_decoder_bias_to_pre_encoder",
    "sparsity_include_decoder_norm", "use_glu_encoder",
}  # fmt: skip
_HARMLESS = {
    "bias_init_method", "decoder_exactly_fixed_norm", "init_decoder_norm", "init_encoder_norm",
    "init_encoder_with_decoder_transpose", "lp", "l1_coefficient", "l1_coefficient_warmup_steps", "k_warmup_steps",
    "use_batch_norm_mse", "use_ghost_grads", "tp_size", "ddp_size", "strict_loading", "sae_pretrained_name_or_path",
    "device", "dtype", "seed", "exp_name", "exp_series", "exp_result_path", "exp_result_dir",
}  # fmt: skip


class LlamaScope(Format):
    """Llama Scope: TopK and JumpReLU SAEs of Llama 3.1 8B."""

    name = "llama_scope"
    layouts = tuple(
        Layout(f"{name}{end}", ("hyperparams.json",), (_LANGUAGE_MODEL,))
        for name in _FILES
        for end in (".safetensors", ".pt")
    )

    def matches(self, path: Path) -> bool:
        return _root(path) is not None

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """The SAE in the folder; see `Format.load`."""
        root = _root(path)
        if root is None:
            raise CheckpointError(f"{path}: hyperparams.json is missing")
        cfg = Config.read(root / "hyperparams.json")
        cfg.check(_MATTERS, _HARMLESS, options)
        file = _weights(root, path)
        biased = cfg.boolean("use_decoder_bias", True)
        file.check(_TENSORS if biased else _TENSORS - {"decoder.bias"}, (), options)
        if cfg.boolean("use_glu_encoder", False):
            raise CheckpointError(
                f"{cfg.path}: 'use_glu_encoder' is true: an encoder of two matrices has no canonical form"
            )
        return _build(cfg, file, biased, _model(root), options)


def _root(path: Path) -> Path | None:
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "hyperparams.json").is_file() and (path.is_dir() is (folder == path)):
            return folder
    return None


def _weights(root: Path, path: Path) -> Weights:
    candidates = [root / f"{name}{suffix}" for name in _FILES for suffix in (".safetensors", ".pt")]
    for file in candidates if path.is_dir() else [path]:
        if file.is_file():
            return SafetensorsFile(file) if file.suffix == ".safetensors" else TorchFile(file, root="sae")
    raise CheckpointError(f"{root}: has no weights ({', '.join(_FILES)})")


def _scales(cfg: Config, d_in: int, facts: list[Fact]) -> tuple[float, float]:
    """Factors from the model's space to the SAE's, at its input and its output."""
    kind = cfg.choice("norm_activation", {"dataset-wise", "inference", "none"})
    facts.append(Fact("input normalization", kind, "hyperparams.json norm_activation"))
    if kind != "dataset-wise":
        return 1.0, 1.0
    norms = cfg.table("dataset_average_activation_norm")
    found = []
    for side in ("in", "out"):
        norm = norms.number(side)
        if norm is None or norm <= 0:
            raise CheckpointError(f"{cfg.path}: 'dataset_average_activation_norm.{side}' is missing or not positive")
        found.append(math.sqrt(d_in) / norm)
        facts.append(Fact(f"scale {side}", repr(found[-1]), f"hyperparams.json dataset_average_activation_norm.{side}"))
    return found[0], found[1]


def _model(root: Path) -> str | None:
    """The language model's official name; its local path, which is of the training machine, is ignored."""
    path = root / _LANGUAGE_MODEL
    return Config.read(path).text("model_name") if path.is_file() else None


def _build(cfg: Config, file: Weights, biased: bool, model: str | None, options: LoadOptions) -> SAE:
    d_sae, d_in = file.shape("encoder.weight", 2)
    cfg.expect("d_model", d_in)
    cfg.expect("d_sae", d_sae)
    facts: list[Fact] = []
    s_in, s_out = _scales(cfg, d_in, facts)
    W_dec = file.transposed("decoder.weight", d_in, d_sae).mul_(s_in / s_out)
    W_enc, b_enc = file.get("encoder.weight", d_sae, d_in), file.get("encoder.bias", d_sae) / s_in
    b_dec = file.get("decoder.bias", d_in) / s_out if biased else torch.zeros(d_in)
    unit = cfg.boolean("sparsity_include_decoder_norm")
    facts.append(Fact("decoder norms in the gate", str(unit).lower(), "hyperparams.json sparsity_include_decoder_norm"))
    if unit:
        norm = W_dec.norm(dim=1)
        W_dec, W_enc, b_enc = W_dec.div_(norm[:, None]), W_enc.mul_(norm[:, None]), b_enc * norm
    subtracts = biased and cfg.boolean("apply_decoder_bias_to_pre_encoder")
    facts.append(Fact("subtracts b_dec", str(subtracts).lower(), "hyperparams.json apply_decoder_bias_to_pre_encoder"))
    activation = _activation(cfg, facts, options)
    hook, hook_out = cfg.text("hook_point_in"), cfg.text("hook_point_out")
    return SAE(
        W_enc.T, W_dec, b_enc, b_dec, activation, subtracts,
        metadata=Metadata(dtype=file.dtype,
            architecture=cfg.text("act_fn") or "unknown", model=model, hook=hook, hook_out=hook_out if hook_out != hook else None,
            declared_l0=cfg.integer("top_k") if isinstance(activation, TopK) else None, facts=tuple(facts),
        ),
    )  # fmt: skip


def _activation(cfg: Config, facts: list[Fact], options: LoadOptions) -> Activation:
    kind = cfg.choice("act_fn", {"relu", "topk", "jumprelu"})
    threshold = cfg.number("jump_relu_threshold")
    if kind == "topk" and threshold:  # its loader reports a JumpReLU but computes a TopK
        raise CheckpointError(
            f"{cfg.path}: 'act_fn' is topk beside a 'jump_relu_threshold': set 'act_fn' to jumprelu or the threshold to 0"
        )
    if kind == "jumprelu":
        if threshold is None or threshold < 0:
            raise CheckpointError(
                f"{cfg.path}: 'jump_relu_threshold' is {threshold}: it is missing or was never learned"
            )
        facts.append(Fact("threshold", repr(threshold), "hyperparams.json jump_relu_threshold, in the model's units"))
        return JumpReLU(torch.tensor(threshold))
    if kind == "relu":
        return ReLU()
    k = cfg.integer("top_k") or options.k
    if k is None:
        raise MissingError("k", f"{cfg.path}: 'top_k' is missing")
    facts.append(Fact("k", str(k), "hyperparams.json top_k" if cfg.has("top_k") else "--k"))
    return TopK(k)


@hookimpl
def saebench_formats() -> list[Format]:
    return [LlamaScope()]
