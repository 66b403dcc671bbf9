"""Regenerate reference/saelens/: checkpoints written by sae-lens, with its own latents and reconstructions beside them.

Run in an environment of its own: pip install sae-lens==6.54.12, then python make_saelens.py. Every parameter is random
and nothing is at its neutral value.
"""

import json
import shutil
from pathlib import Path

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import save_file

HERE = Path(__file__).parent / "saelens"
D_IN, D_SAE, D_OUT, N = 8, 24, 6, 12
X = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(1)) * 2 + 0.7


def metadata(**extra):
    return SAEMetadata(
        model_name="tiny-llama", hook_name="blocks.3.hook_resid_post", prepend_bos=True, context_size=64, **extra
    )


def randomise(sae, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted([*sae.named_parameters(), *sae.named_buffers()]):
            p.copy_(torch.randn(p.shape, generator=generator) * (0.4 if p.ndim == 2 else 0.3))
            if "threshold" in name:
                p.copy_(0.2 + p.abs())
    return sae.eval()


def keep(name, latents, out, options=None):
    tensors = {"x": X, "latents": latents, "out": out}
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, HERE / name / "expected.safetensors")
    if options:
        (HERE / name / "options.json").write_text(json.dumps(options))


def inference(name, architecture, seed, **cfg):
    sae_class, cfg_class = get_sae_class(architecture)
    size = {"d_out": D_OUT} if "transcoder" in architecture else {}
    sae = sae_class(cfg_class(d_in=D_IN, d_sae=D_SAE, metadata=metadata(**cfg.pop("meta", {})), **size, **cfg))
    sae = randomise(sae, seed)
    sae.save_model(HERE / name)
    loaded = SAE.load_from_disk(HERE / name)
    keep(name, loaded.encode(X), loaded(X))


def training(name, architecture, seed, scale=None, whiten=False, export=False, old=False, **cfg):
    sae_class, cfg_class = get_sae_training_class(architecture)
    sae = randomise(sae_class(cfg_class(d_in=D_IN, d_sae=D_SAE, metadata=metadata(), **cfg)), seed)
    if export:
        sae.save_inference_model(HERE / name)
        loaded = SAE.load_from_disk(HERE / name)
        return keep(name, loaded.encode(X), loaded(X))
    sae.save_model(HERE / name)
    scaler = ActivationScaler(scaling_factor=scale)
    if whiten:
        g = torch.Generator().manual_seed(seed + 100)
        matrix = torch.randn(D_IN, D_IN, generator=g, dtype=torch.float64) + 3 * torch.eye(D_IN, dtype=torch.float64)
        mean = torch.randn(D_IN, generator=g, dtype=torch.float64)
        scaler.whitening = ActivationWhitening(mean, matrix, torch.linalg.inv(matrix))
    scaler.save(str(HERE / name / "activation_scaler.json"))
    if old:  # log_threshold, as checkpoints held it before the parameter became the threshold itself
        from safetensors.torch import load_file

        state = load_file(HERE / name / "sae_weights.safetensors")
        state["log_threshold"] = state.pop("threshold").log()
        save_file(state, HERE / name / "sae_weights.safetensors")
    if "batchtopk" in architecture:  # its encode depends on the batch: the threshold is what inference uses
        folder = HERE / name / "tmp"
        sae.save_inference_model(folder)
        loaded = SAE.load_from_disk(folder)
        shutil.rmtree(folder)
    else:
        loaded = TrainingSAE.load_from_disk(HERE / name).eval()
    u = scaler.scale(X)
    return keep(name, loaded.encode(u), scaler.unscale(loaded(u)))


def legacy(name, seed, kind="standard", **flat):
    """A config as versions 3 to 5 wrote it; the weights are written by the library, and so are the outputs."""
    sae_class, cfg_class = get_sae_class(kind)
    cfg = cfg_class(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=flat.get("apply_b_dec_to_input", True))
    randomise(sae_class(cfg), seed).save_model(HERE / name)
    base = {
        "d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu", "model_name": "tiny-llama",
        "hook_layer": 3, "prepend_bos": True, "context_size": 64, "lr": 1e-3, "l1_coefficient": 2.0,
    }  # fmt: skip
    base.setdefault("hook_name", "blocks.3.hook_resid_post") if "hook_point" not in flat else None
    scale = flat.pop("scale", None)
    if kind != "standard":
        base["architecture"] = kind
    (HERE / name / "cfg.json").write_text(json.dumps(base | flat))
    loaded = SAE.load_from_disk(HERE / name)
    if scale:
        loaded.fold_activation_norm_scaling_factor(scale)
    keep(name, loaded.encode(X), loaded(X), {"scale": scale} if scale else None)


shutil.rmtree(HERE, ignore_errors=True)
HERE.mkdir()
seed = 0
for architecture in ("standard", "jumprelu", "gated", "topk", "abstopk"):
    for normalize in ("none", "layer_norm", "constant_norm_rescale"):
        for subtracts in (True, False):
            extra = {"k": 5} if "topk" in architecture else {}
            for rescale in (
                (True, False) if "topk" in architecture and normalize != "constant_norm_rescale" else (None,)
            ):
                seed += 1
                flags = {} if rescale is None else {"rescale_acts_by_decoder_norm": rescale}
                name = f"{architecture}-{normalize}-{'sub' if subtracts else 'nosub'}{'-rescale' if rescale else ''}"
                inference(
                    name,
                    architecture,
                    seed,
                    apply_b_dec_to_input=subtracts,
                    normalize_activations=normalize,
                    **extra,
                    **flags,
                )
for architecture in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
    for normalize in ("none", "layer_norm"):
        seed += 1
        meta = {"hook_name_out": "blocks.3.hook_mlp_out"}
        inference(
            f"{architecture}-{normalize}", architecture, seed, apply_b_dec_to_input=False,
            normalize_activations=normalize, meta=meta,
        )  # fmt: skip
inference("reshape-hook_z", "standard", 90, reshape_activations="none", meta={"n": 1})
for architecture, extra in (
    ("standard", {}), ("jumprelu", {}), ("gated", {}), ("topk", {"k": 5}), ("abstopk", {"k": 5}), ("batchtopk", {"k": 4.5}),
    ("matryoshka_batchtopk", {"k": 4.0, "matryoshka_widths": [6, 14, 24]}),
):  # fmt: skip
    flags = [True, False] if "topk" in architecture else [None]
    for rescale in flags:
        seed += 1
        more = extra | ({} if rescale is None else {"rescale_acts_by_decoder_norm": rescale})
        tag = f"{architecture}{'-rescale' if rescale else ''}"
        training(f"export-{tag}", architecture, seed, export=True, **more)
        training(f"training-{tag}", architecture, seed, **more)
        training(
            f"training-{tag}-scaled",
            architecture,
            seed,
            scale=0.37,
            normalize_activations="expected_average_only_in",
            **more,
        )
        for subtracts in (True, False):
            training(
                f"training-{tag}-whitened-{'sub' if subtracts else 'nosub'}", architecture, seed, whiten=True,
                normalize_activations="covariance_whitening", apply_b_dec_to_input=subtracts, **more,
            )  # fmt: skip
training("training-jumprelu-log_threshold", "jumprelu", 91, old=True)
legacy("legacy-relu", 201, activation_fn_str="relu", normalize_activations="none", apply_b_dec_to_input=False)
legacy("legacy-defaults", 202)
legacy("legacy-hook_point", 203, hook_point="blocks.3.hook_resid_pre", hook_point_layer=3, normalize_activations=False)
legacy("legacy-topk", 204, "topk", architecture="standard", activation_fn_str="topk", activation_fn_kwargs={"k": 6})
legacy("legacy-scale", 205, normalize_activations=True, scale=0.41)
legacy("legacy-scale-jumprelu", 206, "jumprelu", normalize_activations="expected_average_only_in", scale=1.7)
legacy("legacy-gated", 207, "gated", normalize_activations="layer_norm")
