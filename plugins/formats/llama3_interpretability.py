"""llama3_interpretability_sae: a bare state dictionary of its TopKSparseAutoencoder.

Source: the repository's sae.py. Each token is centred and divided by (unbiased standard deviation + eps), and the output
is multiplied by the same; eps is an argument of its loader with default 1e-6. Neither k nor the hook point is in the file.

The published SAE (65,536 latents, k 64) reads the output of block 22's input_layernorm of Llama 3.2 3B:
--k 64 --hook model.layers.22.input_layernorm --model meta-llama/Llama-3.2-3B.
"""

from pathlib import Path

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import MissingError
from saebench.loading.readers import shapes_of, torch_checkpoint, torch_file_of
from saebench.sae import Fact, LayerNorm, Metadata, TopK

_TENSORS = {"b_pre", "encoder.weight", "encoder.bias", "decoder.weight"}
_EPS = 1e-6


class Llama3Interpretability(Format):
    """llama3_interpretability_sae: its TopKSparseAutoencoder in a torch file."""

    name = "llama3_interpretability"

    def matches(self, path: Path) -> bool:
        file = torch_file_of(path)
        return file is not None and "b_pre" in shapes_of(file)

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """Load a bare state dict; `options.k` is required, since the file lacks it."""
        file = torch_checkpoint(path, _TENSORS, options)
        d_sae, d_in = file.shape("encoder.weight", 2)
        if options.k is None:
            raise MissingError("k", f"{file.path}: k is not in the file (the published SAE has 64)")
        W_dec = file.transposed("decoder.weight", d_in, d_sae)
        return SAE(
            file.get("encoder.weight", d_sae, d_in).T, W_dec, file.get("encoder.bias", d_sae), file.get("b_pre", d_in),
            TopK(options.k), True, LayerNorm(eps=_EPS, unbiased=True, eps_on_output=True),
            metadata=Metadata(dtype=file.dtype,
                architecture="topk", declared_l0=options.k,
                facts=(
                    Fact("k", str(options.k), "--k"),
                    Fact("subtracts b_dec", "true", "inferred: this library always does"),
                    Fact("input normalization", f"(x − mean)/(sd + {_EPS})", "inferred: its class's own eps"),
                ),
            ),
        )  # fmt: skip


@hookimpl
def saebench_formats() -> list[Format]:
    return [Llama3Interpretability()]
