"""Gemma Scope 2: one `params.safetensors`, tensor names in lower case, and often a `config.json`.

JumpReLU in linear units, nothing subtracted from the input; transcoders may have an affine skip [d_in, d_out]. A
cross-layer transcoder, whose decoder has three axes, writes to several hook points and is refused.
"""

import re
from pathlib import Path

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import CheckpointError, Layout
from saebench.loading.readers import Config, SafetensorsFile, folder_of, shapes_of
from saebench.sae import Fact, JumpReLU, Metadata

_WEIGHTS = "params.safetensors"
_TENSORS = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold", "affine_skip_connection"}
_MATTERS = {"architecture", "affine_connection", "model_name", "hf_hook_point_in", "hf_hook_point_out", "l0", "width"}
_HARMLESS = {"type", "layer", "site", "name", "tokenizer", "training_tokens", "description"}


class GemmaScope2(Format):
    """Gemma Scope 2: SAEs, transcoders, skip transcoders."""

    name = "gemma_scope_2"
    layouts = (Layout(_WEIGHTS, reads=("config.json",)),)

    def matches(self, path: Path) -> bool:
        folder = folder_of(path, _WEIGHTS)
        return folder is not None and "w_enc" in shapes_of(folder / _WEIGHTS)

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """The SAE in the folder; see `Format.load`."""
        folder = folder_of(path, _WEIGHTS)
        if folder is None:
            raise CheckpointError(f"{path}: {_WEIGHTS} is missing")
        file = SafetensorsFile(folder / _WEIGHTS)
        file.check(_TENSORS, (), options)
        if len(file.shapes.get("w_dec", ())) == 3:
            raise CheckpointError(
                f"{file.path}: 'w_dec' has three axes: cross-layer transcoders, with several outputs, are not supported"
            )
        cfg = Config.read(folder / "config.json") if (folder / "config.json").is_file() else None
        if cfg:
            cfg.check(_MATTERS, _HARMLESS, options)
            cfg.choice("architecture", {"jump_relu"}, "jump_relu")
        d_in, d_sae = file.shape("w_enc", 2)
        d_out = file.shape("b_dec", 1)[0]
        skips = "affine_skip_connection" in file
        if cfg and cfg.boolean("affine_connection", skips) != skips:
            raise CheckpointError(f"{cfg.path}: 'affine_connection' contradicts the tensors ({skips})")
        hook_in = cfg.text("hf_hook_point_in") if cfg else None
        hook_out = cfg.text("hf_hook_point_out") if cfg else None
        threshold = file.get("threshold", d_sae)
        if bool((threshold == -1).all()):
            raise CheckpointError(f"{file.path}: 'threshold' is -1 throughout: it was never learned")
        transcoder = skips or d_in != d_out or (hook_out is not None and hook_out != hook_in)
        return SAE(
            file.get("w_enc", d_in, d_sae), file.get("w_dec", d_sae, d_out).contiguous(), file.get("b_enc", d_sae),
            file.get("b_dec", d_out), JumpReLU(threshold), False,
            W_skip=file.get("affine_skip_connection", d_in, d_out) if skips else None,
            metadata=Metadata(dtype=file.dtype,
                architecture="jumprelu", model=_model(cfg), hook=hook_in,
                hook_out=hook_out if transcoder else None, transcoder=transcoder,
                declared_l0=cfg.number("l0") if cfg else None,
                facts=(
                    Fact("subtracts b_dec", "false", "inferred: Gemma Scope never does"),
                    Fact("threshold", "linear", f"{_WEIGHTS} threshold"),
                    Fact("skip connection", str(skips).lower(), f"{_WEIGHTS} affine_skip_connection"),
                ),
            ),
        )  # fmt: skip


def _model(cfg: Config | None) -> str | None:
    """The model's name on the hub, if the config's name (gemma-v3-1b-pt) implies it; else the config's name."""
    name = cfg.text("model_name") if cfg else None
    if name and re.fullmatch(r"gemma-v?3-\d+[bm](-(pt|it))?", name):
        return "google/" + name.replace("-v3", "-3")
    return name


@hookimpl
def saebench_formats() -> list[Format]:
    return [GemmaScope2()]
