"""EleutherAI sparsify checkpoints: `<hookpoint>/cfg.json` and `<hookpoint>/sae.safetensors`.

Source: eai-sparsify 1.3.3 (sparse_coder.py, fused_encoder.py). The hook point is the folder's name; a transcoder reads the
input of that module and writes its output.
"""

import re
from pathlib import Path
from typing import Any

from saebench import SAE, Format, HookPoint, LoadOptions, hookimpl
from saebench.errors import UsageError
from saebench.format import CheckpointError, Layout, MissingError
from saebench.loading.readers import Config, SafetensorsFile, folder_of
from saebench.sae import AbsTopK, Fact, GroupMax, Metadata, TopK

_WEIGHTS = "sae.safetensors"
_MATTERS = {"activation", "k", "d_in", "num_latents", "expansion_factor", "transcode", "skip_connection", "signed"}
_HARMLESS = {"normalize_decoder", "multi_topk", "init_enc_as_dec_transpose"}


class Sparsify(Format):
    """sparsify: SAEs, transcoders, skip transcoders; TopK and GroupMax."""

    name = "sparsify"
    files = ("cfg.json", _WEIGHTS)
    layouts = (Layout(_WEIGHTS, ("cfg.json",), ("../config.json", "../../config.json")),)

    def matches(self, path: Path) -> bool:
        folder = folder_of(path, _WEIGHTS)
        return folder is not None and (folder / "cfg.json").is_file()

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """The SAE in the folder; see `Format.load`."""
        folder = folder_of(path, _WEIGHTS)
        if folder is None:
            raise CheckpointError(f"{path}: {_WEIGHTS} is missing")
        cfg, weights = Config.read(folder / "cfg.json"), SafetensorsFile(folder / _WEIGHTS)
        cfg.check(_MATTERS, _HARMLESS, options)
        d_sae, d_in = weights.shape("encoder.weight", 2)
        _check_sizes(cfg, d_in, d_sae)
        transcode, skips = cfg.boolean("transcode", False), cfg.boolean("skip_connection", False)
        expected = {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} | ({"W_skip"} if skips else set())
        weights.check(expected, (), options)
        activation, facts = _activation(cfg, d_sae, options)
        facts += (
            Fact("subtracts b_dec", str(not transcode).lower(), "cfg.json transcode"),
            Fact("skip connection", str(skips).lower(), "cfg.json skip_connection"),
        )
        place = folder.resolve()
        place = place.parent if re.fullmatch(r"seed\d+", place.name) else place
        hook, hook_out = _hooks(place.name, transcode)
        return SAE(
            weights.get("encoder.weight", d_sae, d_in).T, weights.get("W_dec", d_sae, d_in).contiguous(),
            weights.get("encoder.bias", d_sae), weights.get("b_dec", d_in), activation, not transcode,
            W_skip=weights.get("W_skip", d_in, d_in).T if skips else None,
            metadata=Metadata(dtype=weights.dtype,
                architecture="topk" if not isinstance(activation, GroupMax) else "groupmax", hook=hook,
                hook_out=hook_out, transcoder=transcode, declared_l0=activation.k, facts=facts, **_run(place),
            ),
        )  # fmt: skip


def _check_sizes(cfg: Config, d_in: int, d_sae: int) -> None:
    cfg.expect("d_in", d_in)
    latents = cfg.integer("num_latents", 0, low=0)
    factor = cfg.integer("expansion_factor")
    said = latents or (d_in * factor if factor else None)
    if said is not None and said != d_sae:
        raise CheckpointError(
            f"{cfg.path}: 'num_latents' or 'expansion_factor' give {said} latents, the tensors {d_sae}"
        )


def _activation(cfg: Config, d_sae: int, options: LoadOptions) -> tuple[TopK | GroupMax | AbsTopK, tuple[Fact, ...]]:
    kind = cfg.choice("activation", {"topk", "groupmax"}, "topk")
    k = cfg.integer("k") or options.k
    if k is None:
        raise MissingError("k", f"{cfg.path}: 'k' is missing")
    facts = (
        Fact("activation", kind, "cfg.json activation" if cfg.has("activation") else "inferred: once the only one"),
        Fact("k", str(k), "cfg.json k" if cfg.has("k") else "--k"),
    )
    signed = cfg.boolean("signed", False)
    if kind == "groupmax":
        if signed or d_sae % k:
            raise CheckpointError(f"{cfg.path}: groupmax with k = {k} does not divide {d_sae} latents, or is signed")
        return GroupMax(k), facts
    if signed:
        return AbsTopK(k), (*facts, Fact("selects by magnitude, keeps signs", "true", "cfg.json signed"))
    return TopK(k), facts


def _hooks(folder: str, transcode: bool) -> tuple[str | None, str | None]:
    """Hook points that the SAE reads and, as a transcoder, writes; None if the folder's name is no hook point."""
    name = folder if folder.startswith(("layers.", "h.")) else None
    if name is None or not transcode:
        return name, None
    try:
        return str(HookPoint.parse(f"{name}.input")), str(HookPoint.parse(name))
    except UsageError:
        return f"{name}.input", name


def _run(folder: Path) -> dict[str, Any]:
    """The model's entries in the run's config, one folder up; empty without that config."""
    parent = folder.parent / "config.json"
    if not parent.is_file():
        return {}
    run = Config.read(parent)
    if "sae" not in run.data:  # another config of that name
        return {}
    return {"model": run.text("model"), "context_length": run.integer("ctx_len")}


@hookimpl
def saebench_formats() -> list[Format]:
    return [Sparsify()]
