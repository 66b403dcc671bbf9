"""Qwen Scope: `layerN.sae.pt` with SAELens's tensor names, the matrices transposed. TopK; nothing is subtracted.

k is only in the name of the repository (`…-W32K-L0_50`), from which it is read if the path contains it.
"""

import re
from pathlib import Path

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import CheckpointError, Layout, MissingError
from saebench.loading.readers import oriented, shapes_of, torch_checkpoint, torch_file_of
from saebench.sae import Fact, Metadata, TopK

from .connor_rob import config_of

_TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec"}
_REPOSITORY = re.compile(r"SAE-Res-(.+)-W\d+K-L0_(\d+)")


class QwenScope(Format):
    """Qwen Scope: TopK SAEs of Qwen models in torch files."""

    name = "qwen_scope"
    layouts = (Layout("layer*.sae.pt", folder=False),)

    def matches(self, path: Path) -> bool:
        file = torch_file_of(path)
        return file is not None and shapes_of(file).keys() == _TENSORS and config_of(file) is None

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """Load a bare state dict in either orientation; k is in the name of the repository or in `options.k`."""
        file = torch_checkpoint(path, _TENSORS, options)
        d_sae, d_in = file.shape("b_enc", 1)[0], file.shape("b_dec", 1)[0]
        W_enc, W_dec = oriented(file, "W_enc", d_in, d_sae), oriented(file, "W_dec", d_sae, d_in)
        if (file.shapes["W_enc"] == (d_in, d_sae)) != (file.shapes["W_dec"] == (d_sae, d_in)):
            raise CheckpointError(f"{file.path}: one of 'W_enc' and 'W_dec' is transposed and the other is not")
        repository = _REPOSITORY.search("/".join(file.path.resolve().parts))
        layer = re.fullmatch(r"layer(\d+)\.sae", file.path.stem)
        k = int(repository[2]) if repository else options.k
        if k is None:
            raise MissingError("k", f"{file.path}: k is not in the file")
        return SAE(
            W_enc, W_dec, file.get("b_enc", d_sae), file.get("b_dec", d_in), TopK(k), False,
            metadata=Metadata(dtype=file.dtype,
                architecture="topk", declared_l0=k, model=f"Qwen/{repository[1]}" if repository else None,
                hook=f"blocks.{layer[1]}.hook_resid_post" if layer else None,
                facts=(
                    Fact("k", str(k), "inferred: the repository's name" if repository else "--k"),
                    Fact("subtracts b_dec", "false", "inferred: this format never does"),
                    Fact("matrices", "transposed" if file.shapes["W_enc"] == (d_sae, d_in) else "as named",
                         "inferred: the biases' lengths"),
                ),
            ),
        )  # fmt: skip


@hookimpl
def saebench_formats() -> list[Format]:
    return [QwenScope()]
