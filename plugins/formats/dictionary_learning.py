"""dictionary_learning checkpoints: `ae.pt` and `config.json`."""

from pathlib import Path
from typing import Any

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.checkpoint import CheckpointError, read_json, read_torch, take, widen
from saebench.sae import JumpReLU, Metadata, TopK


class DictionaryLearning(Format):
    """dictionary_learning's TopK and BatchTopK."""

    name = "dictionary_learning"

    def matches(self, path: Path) -> bool:
        return (path / "ae.pt").is_file() and (path / "config.json").is_file()

    def load(self, path: Path, options: LoadOptions) -> SAE:
        weights = path / "ae.pt"
        trainer = read_json(path / "config.json")["trainer"]
        t = {name: widen(v) for name, v in read_torch(weights).items()}
        d_in, d_sae = trainer["activation_dim"], trainer["dict_size"]
        E, D, b_enc, b_dec = take(
            t, weights, **{"encoder.weight": (d_sae, d_in), "decoder.weight": (d_in, d_sae),
                           "encoder.bias": (d_sae,), "b_dec": (d_in,)}
        )  # fmt: skip
        kind = trainer["dict_class"]
        activation: Any
        if kind == "BatchTopKSAE":
            if float(t["threshold"]) < 0:
                raise CheckpointError(f"{weights}: threshold is {float(t['threshold'])}: it was never learned")
            activation, architecture = JumpReLU(t["threshold"]), "batchtopk"
        elif kind == "AutoEncoderTopK":
            activation, architecture = TopK(int(t["k"])), "topk"
        else:
            raise CheckpointError(f"{path / 'config.json'}: dict_class '{kind}' is not supported")
        return SAE(
            E.T, D.T.contiguous(), b_enc, b_dec, activation, True,
            metadata=Metadata(
                architecture=architecture, model=trainer.get("lm_name"), hook=trainer.get("submodule_name"),
                declared_l0=trainer.get("k"),
            ),
        )  # fmt: skip


@hookimpl
def saebench_formats() -> list[Format]:
    return [DictionaryLearning()]
