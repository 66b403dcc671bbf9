"""Transcoders of circuit-tracer: `layer_N.safetensors`, or `W_enc_N.safetensors` beside `W_dec_N.safetensors`.

Source: circuit-tracer 0.5.0 and sae-lens 6.54.12. W_enc is stored [d_sae, d_in]; the orientation of W_dec follows from the
lengths of the biases. Norm weights of the model must not be folded. A cross-layer transcoder, which writes to several hook
points, is refused, except for its last layer.
"""

import re
from pathlib import Path

from torch import Tensor

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import CheckpointError, Layout
from saebench.loading.readers import SafetensorsFile, oriented, shapes_of
from saebench.sae import Activation, Fact, JumpReLU, Metadata, ReLU

_THRESHOLD = "activation_function.threshold"
_HOOKS = {"mlp.hook_in": "model.layers.{}.mlp.input", "mlp.hook_out": "blocks.{}.hook_mlp_out"}


class Transcoders(Format):
    """circuit-tracer transcoders."""

    name = "transcoders"
    layouts = (
        Layout("layer_*.safetensors", reads=("config.yaml",), folder=False),
        Layout("W_enc_*.safetensors", reads=("config.yaml", "W_dec_{*}.safetensors"), folder=False),
    )

    def matches(self, path: Path) -> bool:
        file = _file(path)
        if file is None:
            return False
        names = shapes_of(file).keys()
        split = re.fullmatch(r"W_enc_(\d+)", file.stem)
        return {"W_enc", "W_dec", "b_enc", "b_dec"} <= names or bool(split and f"W_enc_{split[1]}" in names)

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """Load one layer of a set, from a single file, or from its encoder and decoder files."""
        source = _file(path)
        if source is None:
            raise CheckpointError(f"{path}: name one layer's file (layer_N.safetensors)")
        encoder = SafetensorsFile(source)
        layer = re.search(r"_(\d+)$", source.stem)
        split = f"_{layer[1]}" if layer and f"W_enc_{layer[1]}" in encoder else ""
        decoder = encoder
        known = {f"W_enc{split}", f"b_enc{split}", f"b_dec{split}", f"{_THRESHOLD}{split}"}
        if split:
            decoder = SafetensorsFile(source.with_name(f"W_dec{split}.safetensors"))
            decoder.check({f"W_dec{split}"}, (), options)
        else:
            known |= {"W_dec", "W_skip"}
        encoder.check(known, (), options)
        d_sae, d_out = encoder.shape(f"b_enc{split}", 1)[0], encoder.shape(f"b_dec{split}", 1)[0]
        d_in = sum(encoder.shape(f"W_enc{split}", 2)) - d_sae
        W_enc = oriented(encoder, f"W_enc{split}", d_sae, d_in).T
        W_skip = encoder.get("W_skip", d_out, d_in).T if "W_skip" in encoder else None
        activation = _activation(encoder, f"{_THRESHOLD}{split}", d_sae)
        model, hook, hook_out = _run(source.parent, layer[1] if layer else None)
        return SAE(
            W_enc, _decoder(decoder, f"W_dec{split}", d_sae, d_out), encoder.get(f"b_enc{split}", d_sae),
            encoder.get(f"b_dec{split}", d_out), activation, False, W_skip=W_skip,
            metadata=Metadata(dtype=encoder.dtype,
                architecture="jumprelu" if isinstance(activation, JumpReLU) else "standard", model=model, hook=hook,
                hook_out=hook_out, transcoder=True,
                facts=(
                    Fact("subtracts b_dec", "false", "inferred: no transcoder does"),
                    Fact("skip connection", str(W_skip is not None).lower(), f"{source.name} W_skip"),
                    Fact("model", "norm weights not folded", "inferred: circuit-tracer loads it so"),
                ),
            ),
        )  # fmt: skip


def _file(path: Path) -> Path | None:
    """The file of one layer: `path` itself, or the only one of its folder."""
    if path.is_dir():
        found = [p for p in path.glob("*.safetensors") if re.fullmatch(r"(layer|W_enc)_\d+", p.stem)]
        return found[0] if len(found) == 1 else None
    return path if re.fullmatch(r"(layer|W_enc)_\d+", path.stem) and path.suffix == ".safetensors" else None


def _decoder(file: SafetensorsFile, name: str, d_sae: int, d_out: int) -> Tensor:
    shape = file.shapes.get(name, ())
    if len(shape) == 3:
        if shape != (d_sae, 1, d_out):
            raise CheckpointError(
                f"{file.path}: '{name}' has shape {shape}: cross-layer transcoders, with several outputs, are not supported"
            )
        return file.get(name, d_sae, 1, d_out)[:, 0].contiguous()
    return oriented(file, name, d_sae, d_out)


def _activation(file: SafetensorsFile, name: str, d_sae: int) -> Activation:
    if name not in file:
        return ReLU()
    threshold = file.get(name, *file.shapes[name])
    if threshold.numel() not in (1, d_sae) or bool((threshold < 0).any()):
        raise CheckpointError(f"{file.path}: '{name}' is negative (never learned?) or does not fit {d_sae} latents")
    return JumpReLU(threshold.reshape(-1))


def _run(folder: Path, layer: str | None) -> tuple[str | None, str | None, str | None]:
    """Model and hook points, from the plain `key: value` lines of the set's config.yaml."""
    path = folder / "config.yaml"
    if not path.is_file() or path.stat().st_size > 2**20:
        return None, None, None
    text = path.read_text(encoding="utf-8", errors="replace")
    said = dict(re.findall(r"^(\w+):[ \t]*[\"']?([\w./-]+)[\"']?[ \t]*$", text, re.MULTILINE))

    def hook(key: str) -> str | None:
        name = said.get(key)
        return None if name is None or layer is None else _HOOKS.get(name, f"blocks.{{}}.{name}").format(layer)

    return said.get("model_name"), hook("feature_input_hook"), hook("feature_output_hook")


@hookimpl
def saebench_formats() -> list[Format]:
    return [Transcoders()]
