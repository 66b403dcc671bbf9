"""A bare torch file of two linear layers, `encoder` and `decoder`, both with biases (the DeepSeek-R1-Distill SAEs).

ReLU; nothing is subtracted from the input. dictionary_learning's AutoEncoderNew computes the same.
"""

import re
from pathlib import Path

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import Layout
from saebench.loading.readers import shapes_of, torch_checkpoint, torch_file_of
from saebench.sae import Fact, Metadata, ReLU

_TENSORS = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}


class DeepSeekR1(Format):
    """DeepSeek-R1-Distill SAEs: two linear layers in a torch file."""

    name = "deepseek_r1"
    layouts = (Layout("*[-_.]l[0-9]*.pt", folder=False),)

    def matches(self, path: Path) -> bool:
        file = torch_file_of(path)
        return file is not None and shapes_of(file).keys() == _TENSORS

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """Load a bare state dict; the layer is in the file name, all else is fixed by the format."""
        file = torch_checkpoint(path, _TENSORS, options)
        d_sae, d_in = file.shape("encoder.weight", 2)
        facts = [Fact("subtracts b_dec", "false", "inferred: this format never does")]
        layer = re.search(r"(?:^|[-_.])l(\d+)(?:[-_.]|$)", file.path.stem)
        hook = f"blocks.{layer[1]}.hook_resid_post" if layer else None
        if hook:
            facts.append(Fact("hook", hook, "inferred: the file's name"))
        return SAE(
            file.get("encoder.weight", d_sae, d_in).T, file.transposed("decoder.weight", d_in, d_sae),
            file.get("encoder.bias", d_sae), file.get("decoder.bias", d_in), ReLU(), False,
            metadata=Metadata(dtype=file.dtype, architecture="standard", hook=hook, facts=tuple(facts)),
        )  # fmt: skip


@hookimpl
def saebench_formats() -> list[Format]:
    return [DeepSeekR1()]
