"""Regenerate reference/llamascopium/ with llamascopium 2.0.0b34, in an environment of its own.

What is kept is its documented way: normalize_activations, encode, decode, denormalize_activations.
"""

import shutil
from pathlib import Path

import torch
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent / "llamascopium"
D_IN, D_SAE, N = 8, 24, 12
X = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(4)) * 2 + 0.5
IN, OUT = "blocks.3.hook_resid_post", "blocks.3.hook_mlp_out"


def make(name, seed, out=IN, fold=False, old=False, **cfg):
    folder = HERE / name
    folder.mkdir(parents=True)
    config = SAEConfig(hook_point_in=IN, hook_point_out=out, d_model=D_IN, expansion_factor=D_SAE / D_IN, **cfg)
    sae = SparseAutoEncoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in sorted(sae.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 if p.ndim == 2 else 0.3))
            if "threshold" in n:
                p.sub_(0.5)
    sae.set_dataset_average_activation_norm({IN: 7.7, out: 7.7 if out == IN else 4.2})
    sae.save_pretrained(folder, fold_activation_scale=fold)
    sae.cfg.save_hyperparameters(folder)
    loaded = SparseAutoEncoder.from_pretrained(str(folder))
    with torch.no_grad():
        batch, scales = loaded.normalize_activations({IN: X, out: X}, return_scale_factor=True)
        latents = loaded.encode(batch[IN])
        back = loaded.denormalize_activations({out: loaded.decode(latents)}, {out: scales[out]})
    if old:  # its names before 2.0
        state = load_file(folder / "sae_weights.safetensors")
        state["encoder.weight"], state["decoder.weight"] = (
            state.pop("W_E").T.contiguous(),
            state.pop("W_D").T.contiguous(),
        )
        state["encoder.bias"], state["decoder.bias"] = state.pop("b_E"), state.pop("b_D")
        state["log_jumprelu_threshold"] = state.pop("activation_function.log_jumprelu_threshold")
        save_file(state, folder / "sae_weights.safetensors")
    tensors = {"x": X, "latents": latents, "out": back[out]}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")


shutil.rmtree(HERE, ignore_errors=True)
seed = 0
for act, extra in (("relu", {}), ("topk", {"top_k": 5}), ("jumprelu", {})):
    for gated in (True, False):
        seed += 1
        flags = {"sparsity_include_decoder_norm": gated}
        tag = f"{act}{'' if gated else '-ungated'}"
        make(tag, seed, act_fn=act, **extra, **flags)
        make(f"{tag}-transcoder", seed + 20, out=OUT, act_fn=act, **extra, **flags)
        make(f"{tag}-inference", seed + 40, act_fn=act, fold=True, **extra, **flags)
make("jumprelu-token-wise", 61, act_fn="jumprelu", norm_activation="token-wise")
make("topk-no-decoder-bias", 62, act_fn="topk", top_k=4, use_decoder_bias=False)
make("jumprelu-old-names", 63, act_fn="jumprelu", old=True)
