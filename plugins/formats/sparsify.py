"""EleutherAI sparsify checkpoints: `<hookpoint>/cfg.json` and `<hookpoint>/sae.safetensors`."""

from pathlib import Path

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.checkpoint import read_json, read_safetensors, take
from saebench.sae import Metadata, TopK


class Sparsify(Format):
    """sparsify's TopK SAEs."""

    name = "sparsify"

    def matches(self, path: Path) -> bool:
        return (path / "cfg.json").is_file() and (path / "sae.safetensors").is_file()

    def load(self, path: Path, options: LoadOptions) -> SAE:
        weights = path / "sae.safetensors"
        cfg = read_json(path / "cfg.json")
        t = read_safetensors(weights)
        d_sae, d_in = t["encoder.weight"].shape
        E, b_enc, W_dec, b_dec = take(
            t, weights, **{"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,),
                           "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        )  # fmt: skip
        return SAE(
            E.T, W_dec, b_enc, b_dec, TopK(int(cfg["k"])), not cfg.get("transcode"),
            metadata=Metadata(architecture="topk", hook=path.resolve().name, declared_l0=cfg["k"]),
        )  # fmt: skip


@hookimpl
def saebench_formats() -> list[Format]:
    return [Sparsify()]
