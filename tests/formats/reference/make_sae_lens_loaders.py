"""Regenerate the references of files that only ever existed on a hub, through sae-lens's own loaders for them.

Gemma Scope 1 and 2, Goodfire, DeepSeek-R1, Qwen Scope, attention SAEs, mwhanna transcoders: random files in each layout,
read by sae-lens 6.54.12 (its download is replaced by the local file), and circuit-tracer's class where it has one.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.registry import get_sae_class
from safetensors.torch import save_file

HERE = Path(__file__).parent
D_IN, D_SAE, N = 8, 24, 12
X = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(6)) * 2 + 0.5
G = torch.Generator().manual_seed(7)


def r(*shape):
    return torch.randn(*shape, generator=G) * 0.4


def theirs(cfg, state):
    """An SAE of sae-lens from what one of its loaders returned."""
    cfg = loaders.handle_config_defaulting(cfg)
    sae_class, cfg_class = get_sae_class(cfg["architecture"])
    sae = sae_class(cfg_class.from_dict(cfg | {"device": "cpu", "dtype": "float32"}))
    sae.load_state_dict({k: v.float() for k, v in state.items()})
    return sae.eval()


def keep(folder, sae, options):
    with torch.no_grad():
        tensors = {"x": X, "latents": sae.encode(X), "out": sae(X)}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")
    (folder / "options.json").write_text(json.dumps(options))


def case(library, name, inner="."):
    folder = HERE / library / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / inner).mkdir(parents=True)
    loaders.hf_hub_download = lambda repo_id=None, filename=None, subfolder=None, **_: str(
        folder / inner / Path(filename).name
    )
    return folder


def gemma_scope():
    for name, repo, inner in (
        ("res", "google/gemma-scope-2b-pt-res", "gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_71"),
        ("embedding", "google/gemma-scope-2b-pt-res", "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"),
    ):
        folder = case("gemma_scope", name, inner)
        arrays = {"W_enc": r(D_IN, D_SAE) * 3, "W_dec": r(D_SAE, D_IN), "b_enc": r(D_SAE), "b_dec": r(D_IN)}
        np.savez(
            folder / inner / "params.npz",
            threshold=(0.2 + r(D_SAE).abs()).numpy(),
            **{k: v.numpy() for k, v in arrays.items()},
        )
        inside = inner.split("/", 1)[1]
        cfg, state, _ = loaders.gemma_2_sae_huggingface_loader(
            repo, inside, cfg_overrides={"d_in": D_IN, "d_sae": D_SAE}
        )
        keep(folder, theirs(cfg, state), {"path": inner})


def gemma_scope_2():
    for name, hook, skip in (
        ("res", "resid_post", False), ("transcoder", "transcoder", False), ("skip-transcoder", "transcoder", True),
    ):  # fmt: skip
        inner = f"{hook}/layer_3_width_16k_l0_small{'_affine' if skip else ''}"
        folder = case("gemma_scope_2", name, inner)
        state = {
            "w_enc": r(D_IN, D_SAE), "w_dec": r(D_SAE, D_IN), "b_enc": r(D_SAE), "b_dec": r(D_IN),
            "threshold": 0.2 + r(D_SAE).abs(),
        } | ({"affine_skip_connection": r(D_IN, D_IN)} if skip else {})  # fmt: skip
        save_file(state, folder / inner / "params.safetensors")
        config = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-1b-pt",
            "hf_hook_point_in": "model.layers.3.output",
        }
        if hook == "transcoder":
            config |= {
                "affine_connection": skip, "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
                "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
            }  # fmt: skip
        (folder / inner / "config.json").write_text(json.dumps(config))
        loaders.get_safetensors_tensor_shapes = lambda *_, s=state: {k: list(v.shape) for k, v in s.items()}
        cfg, weights, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-1b-pt", inner)
        keep(folder, theirs(cfg, weights), {"path": inner})


def torch_files():
    folder = case("goodfire", "relu")
    name = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    linear = {"weight": r(D_SAE, D_IN), "bias": r(D_SAE)}, {"weight": r(D_IN, D_SAE), "bias": r(D_IN)}
    torch.save(
        {
            f"{side}_linear.{k}": v
            for side, part in zip(("encoder", "decoder"), linear, strict=True)
            for k, v in part.items()
        },
        folder / name,
    )
    cfg, state, _ = loaders.get_goodfire_huggingface_loader(
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", name, cfg_overrides={"d_in": D_IN, "d_sae": D_SAE}
    )
    keep(folder, theirs(cfg, state), {"path": name})

    folder = case("deepseek_r1", "relu")
    name = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
    torch.save(
        {f"{side}.{k}": v for side, part in zip(("encoder", "decoder"), linear, strict=True) for k, v in part.items()},
        folder / name,
    )
    cfg, state, _ = loaders.deepseek_r1_sae_huggingface_loader("x", name, cfg_overrides={"d_in": D_IN, "d_sae": D_SAE})
    keep(folder, theirs(cfg, state), {"path": name})

    folder = case("qwen_scope", "topk")
    torch.save(
        {"W_enc": r(D_SAE, D_IN), "W_dec": r(D_IN, D_SAE), "b_enc": r(D_SAE), "b_dec": r(D_IN)},
        folder / "layer3.sae.pt",
    )
    cfg, state, _ = loaders.qwen_scope_sae_huggingface_loader(
        "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5", "layer3.sae.pt", cfg_overrides={"d_in": D_IN, "d_sae": D_SAE}
    )
    keep(folder, theirs(cfg, state), {"path": "layer3.sae.pt", "k": 5})

    folder = case("connor_rob", "hook_z")
    torch.save(
        {"W_enc": r(D_IN, D_SAE), "W_dec": r(D_SAE, D_IN), "b_enc": r(D_SAE), "b_dec": r(D_IN)}, folder / "attn.pt"
    )
    config = {
        "act_size": D_IN,
        "dict_size": D_SAE,
        "act_name": "blocks.0.attn.hook_z",
        "lr": 1e-3,
        "model_name": "gpt2",
    }
    (folder / "attn_cfg.json").write_text(json.dumps(config))
    cfg, state, _ = loaders.connor_rob_hook_z_huggingface_loader("x", "attn.pt")
    keep(folder, theirs(cfg | {"reshape_activations": "none"}, state), {"path": "attn.pt"})


def transcoders():
    folder = case("transcoders", "mwhanna")
    state = {"W_enc": r(D_SAE, D_IN), "W_dec": r(D_SAE, D_IN), "b_enc": r(D_SAE), "b_dec": r(D_IN)}
    save_file(state, folder / "layer_3.safetensors")
    (folder / "wandb-config.yaml").write_text(
        f"d_model:\n  value: {D_IN}\nd_feature:\n  value: {D_SAE}\nbatch_size:\n  value: 64\n"
    )
    (folder / "config.yaml").write_text(
        'model_name: "Qwen/Qwen3-4B"\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n'
    )
    cfg, weights, _ = loaders.mwhanna_transcoder_huggingface_loader("x", "layer_3.safetensors")
    keep(folder, theirs(cfg, weights), {"path": "layer_3.safetensors"})
    try:
        from circuit_tracer.transcoder.activation_functions import JumpReLU
        from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
    except ImportError:
        raise SystemExit("circuit-tracer is not installed: its own two references are left as they are") from None
    for name, threshold, skip in (("circuit-tracer-relu-skip", False, True), ("circuit-tracer-jumprelu", True, False)):
        folder = case("transcoders", name)
        act = JumpReLU(0.2 + r(D_SAE).abs()) if threshold else torch.nn.functional.relu
        coder = SingleLayerTranscoder(
            D_IN, D_SAE, act, 3, skip_connection=skip, dtype=torch.float32, device=torch.device("cpu")
        )
        with torch.no_grad():
            for n, p in sorted(coder.named_parameters()):
                if "threshold" not in n:
                    p.copy_(r(*p.shape))
        coder.to_safetensors(str(folder / "layer_3.safetensors"))
        keep(folder, coder, {"path": "layer_3.safetensors"})


gemma_scope()
gemma_scope_2()
torch_files()
transcoders()
