"""dictionary_learning checkpoints: `ae.pt` and `config.json`, for its seven dictionary classes.

Source: dictionary-learning 0.1.0 (dictionary.py, trainers/, training.py). Final checkpoints have the training scale folded
in; a backup written during training wraps unscaled weights with their scale, which is folded in here.
"""

from pathlib import Path
from typing import Any

import torch

from saebench import SAE, Format, LoadOptions, hookimpl
from saebench.format import CheckpointError, Layout, MissingError
from saebench.loading.readers import Config, TorchFile, folder_of
from saebench.sae import Activation, Fact, Gated, JumpReLU, Metadata, ReLU, TopK

_TRAINER = {
    "dict_class",
    "activation_dim",
    "dict_size",
    "k",
    "layer",
    "lm_name",
    "submodule_name",
    "group_sizes",
    "norm_factor",
}
_TRAINER_HARMLESS = {
    "trainer_class", "lr", "steps", "seed", "device", "wandb_name", "warmup_steps", "decay_start", "auxk_alpha",
    "threshold_beta", "threshold_start_step", "top_k_aux", "l1_penalty", "resample_steps", "sparsity_warmup_steps",
    "sparsity_penalty", "sparsity_function", "sparsity_queue_length", "n_sparsity_updates", "anneal_start", "p_start",
    "p_end", "bandwidth", "target_l0", "group_fractions", "group_weights", "k_anneal_steps",
}  # fmt: skip
_BUFFER_HARMLESS = {"d_submodule", "io", "n_ctxs", "refresh_batch_size", "out_batch_size", "device", "layer"}
_LINEAR = {"encoder.weight", "decoder.weight"}
_BATCH_TOPK = _LINEAR | {"encoder.bias", "b_dec", "k", "threshold"}
_MATRICES = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
# dict_class -> its tensors and its architecture
_CLASSES: dict[str, tuple[set[str], str]] = {
    "AutoEncoder": (_LINEAR | {"encoder.bias", "bias"}, "standard"),
    "AutoEncoderNew": (_LINEAR | {"encoder.bias", "decoder.bias"}, "standard"),
    "GatedAutoEncoder": (_LINEAR | {"decoder_bias", "gate_bias", "mag_bias", "r_mag"}, "gated"),
    "JumpReluAutoEncoder": (_MATRICES, "jumprelu"),
    "AutoEncoderTopK": (_BATCH_TOPK, "topk"),
    "BatchTopKSAE": (_BATCH_TOPK, "batchtopk"),
    "MatryoshkaBatchTopKSAE": (_MATRICES | {"k", "group_sizes"}, "matryoshka_batchtopk"),
}


class DictionaryLearning(Format):
    """dictionary_learning: seven classes of dictionaries in `ae.pt`."""

    name = "dictionary_learning"
    files = ("config.json", "ae.pt")
    layouts = (Layout("ae.pt", ("config.json",)),)

    def matches(self, path: Path) -> bool:
        folder = folder_of(path, "ae.pt")
        return folder is not None and (folder / "config.json").is_file()

    def load(self, path: Path, options: LoadOptions) -> SAE:
        """The SAE in the folder; see `Format.load`."""
        folder = folder_of(path, "ae.pt")
        if folder is None:
            raise CheckpointError(f"{path}: ae.pt is missing")
        config = Config.read(folder / "config.json")
        config.check({"trainer", "buffer"}, (), options)
        trainer, buffer = config.table("trainer"), config.table("buffer")
        trainer.check(_TRAINER, _TRAINER_HARMLESS, options)
        buffer.check({"ctx_len"}, _BUFFER_HARMLESS, options)
        kind = trainer.choice("dict_class", _CLASSES)
        file, norm_factor = _open(folder / "ae.pt", options)
        tensors, architecture = _CLASSES[kind]
        file.check(tensors, (), options)
        facts = [Fact("dictionary", kind, "config.json trainer.dict_class")]
        if norm_factor is not None:
            facts.append(Fact("training scale undone", repr(norm_factor), "ae.pt norm_factor"))
        sae = _READERS[kind](file, trainer, norm_factor or 1.0, facts, options)
        facts.append(Fact("subtracts b_dec", str(sae.subtracts_b_dec).lower(), f"inferred: {kind} is written so"))
        meta = Metadata(dtype=file.dtype,
            architecture=architecture, model=trainer.text("lm_name"), hook=_hook(trainer, buffer),
            context_length=buffer.integer("ctx_len"), declared_l0=trainer.number("k"),
            group_sizes=file.integers("group_sizes") if "group_sizes" in file else None, facts=tuple(facts),
        )  # fmt: skip
        if meta.group_sizes and (sum(meta.group_sizes) != sae.d_sae or min(meta.group_sizes) < 1):
            raise CheckpointError(f"{file.path}: 'group_sizes' {meta.group_sizes} do not add up to {sae.d_sae}")
        return SAE(
            sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, sae.activation, sae.subtracts_b_dec, metadata=meta
        )  # fmt: skip


def _open(path: Path, options: LoadOptions) -> tuple[TorchFile, float | None]:
    """The weights, and the training scale if the file is a backup from the middle of a run."""
    file = TorchFile(path)
    if "ae" not in file.values:
        return file, None
    file.check({"ae", "norm_factor"}, {"step", "optimizer", "config"}, options)
    factor: Any = file.values.get("norm_factor")
    if type(factor) not in (int, float) or not 0 < factor < float("inf"):
        raise CheckpointError(f"{path}: a backup from the middle of a run whose 'norm_factor' is {factor!r}")
    return TorchFile(path, root="ae"), float(factor)


def _hook(trainer: Config, buffer: Config) -> str | None:
    """The submodule's name, else the layer's residual stream; None for a buffer of inputs, whose name gives no site."""
    if buffer.text("io", "out") != "out":
        return None
    layer = trainer.integer("layer", low=0)
    return trainer.text("submodule_name") or (None if layer is None else f"blocks.{layer}.hook_resid_post")


def _linear(file: TorchFile, trainer: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """W_enc [d_in, d_sae] and W_dec [d_sae, d_in] of torch.nn.Linear weights."""
    d_sae, d_in = file.shape("encoder.weight", 2)
    trainer.expect("dict_size", d_sae)
    trainer.expect("activation_dim", d_in)
    return file.get("encoder.weight", d_sae, d_in).T, file.transposed("decoder.weight", d_in, d_sae)


def _autoencoder(file: TorchFile, trainer: Config, factor: float, facts: list[Fact], options: LoadOptions) -> SAE:
    """AutoEncoder: normalise the decoder rows, as its own loader does."""
    W_enc, W_dec = _linear(file, trainer)
    d_in, d_sae = W_enc.shape
    b_enc, bias = file.get("encoder.bias", d_sae) * factor, file.get("bias", d_in) * factor
    norm = W_dec.norm(dim=1)
    if not torch.allclose(norm, torch.ones_like(norm)):
        W_enc, W_dec, b_enc = W_enc.mul_(norm), W_dec.div_(norm[:, None]), b_enc * norm
        facts.append(Fact("decoder norms folded into the encoder", "true", "inferred: as its own loader does"))
    return SAE(W_enc, W_dec, b_enc, bias, ReLU(), True)


def _autoencoder_new(file: TorchFile, trainer: Config, factor: float, facts: list[Fact], options: LoadOptions) -> SAE:
    W_enc, W_dec = _linear(file, trainer)
    d_in, d_sae = W_enc.shape
    b_enc, b_dec = file.get("encoder.bias", d_sae) * factor, file.get("decoder.bias", d_in) * factor
    return SAE(W_enc, W_dec, b_enc, b_dec, ReLU(), False)


def _gated(file: TorchFile, trainer: Config, factor: float, facts: list[Fact], options: LoadOptions) -> SAE:
    W_enc, W_dec = _linear(file, trainer)
    d_in, d_sae = W_enc.shape
    gate = Gated(file.get("r_mag", d_sae), file.get("gate_bias", d_sae) * factor, file.get("mag_bias", d_sae) * factor)
    return SAE(W_enc, W_dec, torch.zeros(d_sae), file.get("decoder_bias", d_in) * factor, gate, True)


def _topk(file: TorchFile, trainer: Config, factor: float, facts: list[Fact], options: LoadOptions) -> SAE:
    """TopK and BatchTopK. TopK stores a threshold too, but encodes with its k."""
    W_enc, W_dec = _linear(file, trainer)
    d_in, d_sae = W_enc.shape
    if trainer.data["dict_class"] == "AutoEncoderTopK":
        activation: Activation = TopK(_k(file, trainer, facts, options))
    else:
        activation = _threshold(file, factor, facts)
    b_enc, b_dec = file.get("encoder.bias", d_sae) * factor, file.get("b_dec", d_in) * factor
    return SAE(W_enc, W_dec, b_enc, b_dec, activation, True)


def _matrices(file: TorchFile, trainer: Config, factor: float, facts: list[Fact], options: LoadOptions) -> SAE:
    """JumpReLU, which subtracts nothing, and Matryoshka BatchTopK."""
    d_in, d_sae = file.shape("W_enc", 2)
    trainer.expect("dict_size", d_sae)
    trainer.expect("activation_dim", d_in)
    jump = trainer.data["dict_class"] == "JumpReluAutoEncoder"
    activation = JumpReLU(file.get("threshold", d_sae) * factor) if jump else _threshold(file, factor, facts)
    if jump and bool((activation.threshold == -1).all()):
        raise CheckpointError(f"{file.path}: 'threshold' is -1 throughout: it was never learned")
    return SAE(
        file.get("W_enc", d_in, d_sae), file.get("W_dec", d_sae, d_in).contiguous(), file.get("b_enc", d_sae) * factor,
        file.get("b_dec", d_in) * factor, activation, not jump,
    )  # fmt: skip


def _threshold(file: TorchFile, factor: float, facts: list[Fact]) -> JumpReLU:
    threshold = file.scalar("threshold")
    if not threshold >= 0:
        raise CheckpointError(
            f"{file.path}: threshold is {threshold}: it was never learned, and the SAE would act as a dense ReLU"
        )
    facts.append(Fact("threshold", repr(threshold), "ae.pt threshold"))
    return JumpReLU(torch.tensor(threshold * factor))


def _k(file: TorchFile, trainer: Config, facts: list[Fact], options: LoadOptions) -> int:
    said = trainer.integer("k")
    held = file.scalar("k") if "k" in file else None
    if held is not None and (held != int(held) or (said is not None and said != held)):
        raise CheckpointError(f"{file.path}: 'k' is {held}, but trainer.k in config.json is {said}")
    k = int(held) if held is not None else said or options.k
    if k is None:
        raise MissingError("k", f"{file.path}: 'k' is missing")
    facts.append(Fact("k", str(k), "ae.pt k" if held is not None else "config.json trainer.k" if said else "--k"))
    return k


_READERS: dict[str, Any] = {
    "AutoEncoder": _autoencoder, "AutoEncoderNew": _autoencoder_new, "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _matrices, "AutoEncoderTopK": _topk, "BatchTopKSAE": _topk,
    "MatryoshkaBatchTopKSAE": _matrices,
}  # fmt: skip


@hookimpl
def saebench_formats() -> list[Format]:
    return [DictionaryLearning()]
