"""Goodfire's SAEs: a torch file with `encoder_linear` and `decoder_linear`. ReLU; nothing is subtracted from the input.

Model and layer are only in the file name of the release ("Llama-3.1-8B-Instruct-SAE-l19.pth").
"""

import re
from pathlib import Path

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import Layout
from saebench.loading.readers import shapes_of, torch_checkpoint, torch_file_of
from saebench.sae import Fact, Metadata, ReLU

_TENSORS = {"encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias"}
_NAME = re.compile(r"(.+)-SAE-l(\d+)")


class Goodfire(Format):
    """Goodfire: two linear layers in a torch file."""

    name = "goodfire"
    layouts = (Layout("*-SAE-l*.pth", folder=False), Layout("*-SAE-l*.pt", folder=False))

    def matches(self, path: Path) -> bool:
        file = torch_file_of(path)
        return file is not None and "encoder_linear.weight" in shapes_of(file)

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """Load a bare state dict; model and layer are in the file name."""
        file = torch_checkpoint(path, _TENSORS, options)
        d_sae, d_in = file.shape("encoder_linear.weight", 2)
        W_dec = file.transposed("decoder_linear.weight", d_in, d_sae)
        facts = [Fact("subtracts b_dec", "false", "inferred: this library never does")]
        model = hook = None
        if found := _NAME.fullmatch(file.path.stem):
            model, hook = found[1], f"blocks.{found[2]}.hook_resid_post"
            facts.append(Fact("model and hook", f"{model}, {hook}", "inferred: the file's name"))
        return SAE(
            file.get("encoder_linear.weight", d_sae, d_in).T, W_dec, file.get("encoder_linear.bias", d_sae),
            file.get("decoder_linear.bias", d_in), ReLU(), False,
            metadata=Metadata(dtype=file.dtype, architecture="standard", model=model, hook=hook, facts=tuple(facts)),
        )  # fmt: skip


@hookimpl
def saebench_formats() -> list[Format]:
    return [Goodfire()]
