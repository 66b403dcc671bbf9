"""Gemma Scope 1: one `params.npz` (arXiv 2408.05147). JumpReLU in linear units; nothing is subtracted from the input.

Model and hook point are not in the file; they are read from the folders of the release, if kept.
"""

import math
import re
from pathlib import Path

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import CheckpointError, Layout
from saebench.loading.readers import NpzFile, folder_of, shapes_of
from saebench.sae import Fact, JumpReLU, Metadata

_TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
_SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


class GemmaScope(Format):
    """Gemma Scope 1: SAEs and transcoders."""

    name = "gemma_scope"
    layouts = (Layout("params.npz"),)

    def matches(self, path: Path) -> bool:
        folder = folder_of(path, "params.npz")
        return folder is not None and "W_enc" in shapes_of(folder / "params.npz")

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """The SAE in the file; see `Format.load`."""
        folder = folder_of(path, "params.npz")
        if folder is None:
            raise CheckpointError(f"{path}: params.npz is missing")
        file = NpzFile(folder / "params.npz")
        file.check(_TENSORS, (), options)
        d_in, d_sae = file.shape("W_enc", 2)
        d_out = file.shape("b_dec", 1)[0]
        W_enc, W_dec = file.get("W_enc", d_in, d_sae), file.get("W_dec", d_sae, d_out)
        threshold = file.get("threshold", d_sae)
        if bool((threshold == -1).all()):
            raise CheckpointError(f"{file.path}: 'threshold' is -1 throughout: it was never learned")
        facts = [
            Fact("subtracts b_dec", "false", "inferred: Gemma Scope never does"),
            Fact("threshold", "linear", "params.npz threshold"),
        ]
        parts = folder.resolve().parts
        if any("embedding" in part for part in parts):
            W_enc, W_dec = W_enc / math.sqrt(d_in), W_dec * math.sqrt(d_in)
            facts.append(Fact("input scale", "1/√d: Gemma scales its embeddings", "inferred: 'embedding' in the path"))
        model, hook, hook_out = _place(parts)
        return SAE(
            W_enc, W_dec, file.get("b_enc", d_sae), file.get("b_dec", d_out), JumpReLU(threshold), False,
            metadata=Metadata(dtype=file.dtype,
                architecture="jumprelu", model=model, hook=hook, hook_out=hook_out, declared_l0=_l0(parts),
                transcoder=d_in != d_out or "transcoders" in "/".join(parts), facts=tuple(facts),
            ),
        )  # fmt: skip


def _place(parts: tuple[str, ...]) -> tuple[str | None, str | None, str | None]:
    """Model, hook point and a transcoder's output hook point, from the names of the release's folders."""
    text = "/".join(parts)
    layer = re.search(r"layer_(\d+)(?:/|$)", text)
    repository = _REPOSITORY.search(text)
    if not repository or not layer:
        return None, None, None
    size, tuned, kind = repository.groups()
    model = f"google/gemma-2-{size}{'-it' if tuned == 'it' else ''}"
    if kind == "transcoders":  # transcoders read the output of the norm before the MLP, which Gemma names differently
        return model, f"model.layers.{layer[1]}.mlp.input", f"blocks.{layer[1]}.hook_mlp_out"
    return model, f"blocks.{layer[1]}.{_SITES[kind]}", None


def _l0(parts: tuple[str, ...]) -> float | None:
    found = re.search(r"average_l0_(\d+)$", parts[-1])
    return float(found[1]) if found else None


@hookimpl
def saebench_formats() -> list[Format]:
    return [GemmaScope()]
