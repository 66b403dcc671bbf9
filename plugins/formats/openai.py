"""OpenAI's sparse_autoencoder: one torch file with the tensors and the activation's name and state.

Source: the repository's model.py (arXiv 2406.04093). It normalises each token exactly when the activation is TopK, by the
unbiased standard deviation, plus 1e-5 at the input only. Model and hook point are not in the file.
"""

from pathlib import Path
from typing import Any

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import CheckpointError, MissingError
from saebench.loading.readers import TorchFile, shapes_of, torch_checkpoint, torch_file_of
from saebench.sae import Activation, Fact, Identity, LayerNorm, Metadata, NoTransform, ReLU, SignedTopK, TopK

_TENSORS = {"pre_bias", "latent_bias", "encoder.weight", "decoder.weight", "decoder.linear.weight"}
# TopK stores its state twice: under activation_state_dict, and flat.
_VALUES = {"activation", "activation_state_dict", "activation.k", "activation.postact_fn"}
_STATISTICS = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}


class OpenAI(Format):
    """OpenAI sparse_autoencoder: TopK, ReLU or identity in a torch file."""

    name = "openai"

    def matches(self, path: Path) -> bool:
        file = torch_file_of(path)
        return file is not None and {"pre_bias", "latent_bias"} <= shapes_of(file).keys()

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """Load an autoencoder, tied or not, with the activation of the file, by default ReLU."""
        file = torch_checkpoint(path, _TENSORS | _VALUES, options, _STATISTICS)
        d_sae, d_in = file.shape("encoder.weight", 2)
        tied = "decoder.linear.weight" in file
        if tied == ("decoder.weight" in file):
            raise CheckpointError(f"{file.path}: needs one of 'decoder.weight' and 'decoder.linear.weight' (tied)")
        if tied:
            W_dec = file.get("decoder.linear.weight", d_sae, d_in).contiguous()
        else:
            W_dec = file.transposed("decoder.weight", d_in, d_sae)
        activation, facts = _activation(file, options)
        normalizes = isinstance(activation, TopK | SignedTopK)
        facts += (
            Fact("subtracts b_dec", "true", "inferred: this library always does"),
            Fact("input normalization", "layer_norm" if normalizes else "none", f"{file.path.name} activation"),
        )
        return SAE(
            file.get("encoder.weight", d_sae, d_in).T, W_dec, file.get("latent_bias", d_sae), file.get("pre_bias", d_in),
            activation, True, LayerNorm(eps=1e-5) if normalizes else NoTransform(),
            metadata=Metadata(dtype=file.dtype,
                architecture="topk" if normalizes else "standard", declared_l0=getattr(activation, "k", None),
                facts=facts,
            ),
        )  # fmt: skip


def _activation(file: TorchFile, options: LoadOptions) -> tuple[Activation, tuple[Fact, ...]]:
    kind = file.values.get("activation", "ReLU")
    fact = Fact("activation", str(kind), f"{file.path.name} activation" if "activation" in file.values else "inferred")
    if kind == "ReLU":
        return ReLU(), (fact,)
    if kind == "Identity":
        return Identity(), (fact,)
    if kind != "TopK":
        raise CheckpointError(f"{file.path}: 'activation' is {kind!r}, expected TopK, ReLU or Identity")
    state: Any = file.values.get("activation_state_dict") or {}
    if not isinstance(state, dict) or set(state) - {"k", "postact_fn"}:
        raise CheckpointError(f"{file.path}: 'activation_state_dict' is not a TopK's")
    if any(file.values.get(f"activation.{key}", value) != value for key, value in state.items()):
        raise CheckpointError(
            f"{file.path}: 'activation_state_dict' contradicts 'activation.k' or 'activation.postact_fn'"
        )
    k = state.get("k", options.k)
    if k is None:
        raise MissingError("k", f"{file.path}: 'activation_state_dict.k' is missing")
    if type(k) is not int or k < 1:
        raise CheckpointError(f"{file.path}: 'activation_state_dict.k' is {k!r}, expected a whole number ≥ 1")
    after = state.get("postact_fn", "ReLU")
    facts = (fact, Fact("k", str(k), "activation_state_dict.k" if "k" in state else "--k"), Fact("after top-k", str(after), "activation_state_dict.postact_fn"))  # fmt: skip # noqa: E501
    if after == "ReLU":
        return TopK(k), facts
    if after == "Identity":
        return SignedTopK(k), facts
    raise CheckpointError(f"{file.path}: 'activation_state_dict.postact_fn' is {after!r}, expected ReLU or Identity")


@hookimpl
def saebench_formats() -> list[Format]:
    return [OpenAI()]
