"""SAELens v6 checkpoints: `cfg.json` with nested metadata and `sae_weights.safetensors`.

Facts from sae-lens 6.54: standard, jumprelu, topk and gated architectures; BatchTopK exports as jumprelu.
"""

from pathlib import Path
from typing import Any

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.checkpoint import CheckpointError, check_keys, read_json, read_safetensors, take
from saebench.sae import Fact, JumpReLU, Metadata, ReLU, TopK

_MATTERS = {"architecture", "k", "apply_b_dec_to_input", "normalize_activations", "rescale_acts_by_decoder_norm",
            "reshape_activations", "d_in", "d_sae", "metadata"}  # fmt: skip
_HARMLESS = {"dtype", "device"}


class SAELens(Format):
    """SAELens v6."""

    name = "saelens"

    def matches(self, path: Path) -> bool:
        return (path / "cfg.json").is_file() and (path / "sae_weights.safetensors").is_file()

    def load(self, path: Path, options: LoadOptions) -> SAE:
        cfg_path, weights_path = path / "cfg.json", path / "sae_weights.safetensors"
        cfg = read_json(cfg_path)
        check_keys(cfg, _MATTERS | _HARMLESS, options, cfg_path)
        t = read_safetensors(weights_path)
        if "W_enc" not in t:
            raise CheckpointError(f"{weights_path}: tensor 'W_enc' is missing")
        d_in, d_sae = t["W_enc"].shape
        W_enc, W_dec, b_enc, b_dec = take(
            t, weights_path, W_enc=(d_in, d_sae), W_dec=(d_sae, d_in), b_enc=(d_sae,), b_dec=(d_in,)
        )
        architecture = cfg.get("architecture")
        activation: Any
        if architecture == "topk":
            activation = TopK(int(cfg["k"]))
            if cfg.get("rescale_acts_by_decoder_norm"):
                norm = W_dec.norm(dim=1)
                W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm[:, None]
        elif architecture == "standard":
            activation = ReLU()
        elif architecture == "jumprelu":
            activation = JumpReLU(t["threshold"])
        else:
            raise CheckpointError(f"{cfg_path}: architecture '{architecture}' is not supported")
        if cfg.get("normalize_activations", "none") != "none" or cfg.get("reshape_activations", "none") != "none":
            raise CheckpointError(f"{cfg_path}: normalize_activations / reshape_activations are not supported")
        meta = cfg.get("metadata") or {}
        return SAE(
            W_enc, W_dec, b_enc, b_dec, activation, bool(cfg["apply_b_dec_to_input"]),
            metadata=Metadata(
                architecture=architecture, model=meta.get("model_name"), hook=meta.get("hook_name"),
                context_length=meta.get("context_size"), prepend_bos=meta.get("prepend_bos"),
                declared_l0=cfg.get("k"),
                facts=(Fact("apply_b_dec_to_input", str(cfg["apply_b_dec_to_input"]), "cfg.json"),),
            ),
        )  # fmt: skip


@hookimpl
def saebench_formats() -> list[Format]:
    return [SAELens()]
