"""Regenerate the references of SAEs whose code is in public repositories, not on PyPI: the path of each is an argument.

python make_repositories.py openai PATH/sparse_autoencoder          (github.com/openai/sparse_autoencoder)
python make_repositories.py llama3 PATH/llama3_interpretability_sae  (its sae.py)
python make_repositories.py llama_scope PATH/Language-Model-SAEs/src (at commit 4ec6f0aa)
"""

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
D_IN, D_SAE, N = 8, 24, 12
X = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(5)) * 2 + 0.5


def fill(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(module.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return module


def keep(folder, latents, out, options):
    tensors = {"x": X, "latents": latents, "out": out}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")
    (folder / "options.json").write_text(json.dumps(options))


def openai():
    from sparse_autoencoder.model import Autoencoder, TopK

    cases = {
        "topk": TopK(5), "topk-signed": TopK(5, torch.nn.Identity()), "relu": torch.nn.ReLU(), "identity": torch.nn.Identity(),
    }  # fmt: skip
    for seed, (name, activation) in enumerate(cases.items()):
        folder = HERE / "openai" / name
        folder.mkdir(parents=True)
        torch.save(
            fill(Autoencoder(D_SAE, D_IN, activation, normalize="topk" in name), seed).state_dict(), folder / "5.pt"
        )
        loaded = Autoencoder.from_state_dict(torch.load(folder / "5.pt"), strict=False)
        latents, info = loaded.encode(X)
        keep(folder, latents, loaded.decode(latents, info), {"path": "5.pt"})
    folder = HERE / "openai" / "tied"
    folder.mkdir(parents=True)
    tied = fill(Autoencoder(D_SAE, D_IN, tied=True), 9)
    torch.save(tied.state_dict(), folder / "5.pt")
    latents, info = tied.encode(X)
    keep(folder, latents, tied.decode(latents, info), {"path": "5.pt"})


def llama3():
    from sae import TopKSparseAutoencoder, load_sae_model

    folder = HERE / "llama3_interpretability" / "topk"
    folder.mkdir(parents=True)
    written = fill(TopKSparseAutoencoder(D_IN, D_SAE, 5, torch.zeros(D_IN), torch.float32), 1)
    torch.save(written.state_dict(), folder / "sae.pth")
    sae = load_sae_model(folder / "sae.pth", 5, 1e-6, torch.device("cpu"), torch.float32)
    u, _, _ = sae.preprocess_input(X)
    keep(folder, sae.forward_1d_normalized(u)[2], sae(X[None])[0], {"path": "sae.pth", "k": 5})


def llama_scope():
    for name in ("bson", "pymongo", "gridfs", "pymongo.collection", "pymongo.database"):  # its database is not needed
        sys.modules[name] = MagicMock()
    from lm_saes.config import SAEConfig
    from lm_saes.sae import SparseAutoEncoder

    IN, OUT = "blocks.3.hook_resid_post", "blocks.3.hook_mlp_out"
    cases = {
        "jumprelu": {"act_fn": "jumprelu", "jump_relu_threshold": 0.6},
        "jumprelu-subtracts": {"act_fn": "jumprelu", "jump_relu_threshold": 0.4, "apply_decoder_bias_to_pre_encoder": True},
        "jumprelu-transcoder": {"act_fn": "jumprelu", "jump_relu_threshold": 0.3, "hook_point_out": OUT},
        "topk": {"act_fn": "topk", "top_k": 5, "sparsity_include_decoder_norm": False},
        "jumprelu-ungated": {"act_fn": "jumprelu", "jump_relu_threshold": 0.6, "sparsity_include_decoder_norm": False},
        "jumprelu-inference": {"act_fn": "jumprelu", "jump_relu_threshold": 0.6, "norm_activation": "inference"},
        "relu": {"act_fn": "relu"},
        "relu-no-decoder-bias": {"act_fn": "relu", "use_decoder_bias": False, "norm_activation": "inference"},
    }  # fmt: skip
    for seed, (name, cfg) in enumerate(cases.items()):
        folder = HERE / "llama_scope" / name
        (folder / "checkpoints").mkdir(parents=True)
        base = {
            "hook_point_in": IN, "hook_point_out": IN, "d_model": D_IN, "expansion_factor": 3, "d_sae": D_SAE,
            "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 7.7, "out": 4.2},
            "sparsity_include_decoder_norm": True, "apply_decoder_bias_to_pre_encoder": False,
        }  # fmt: skip
        said = base | cfg
        written = fill(SparseAutoEncoder(SAEConfig(**said, device="cpu")), seed)
        written.save_pretrained(str(folder / "checkpoints" / "final.safetensors"))
        config = SAEConfig(**said, device="cpu").to_dict()
        config = {k: v for k, v in config.items() if k not in ("sae_pretrained_name_or_path", "dtype", "device")}
        (folder / "hyperparams.json").write_text(json.dumps(config))
        sae = SparseAutoEncoder.from_pretrained(str(folder), device="cpu")
        keep(folder, sae.encode(X), sae(X), {})


which, path = sys.argv[1:]
sys.path.insert(0, path)
names = {"llama3": "llama3_interpretability"}
shutil.rmtree(HERE / names.get(which, which), ignore_errors=True)
with torch.no_grad():
    {"openai": openai, "llama3": llama3, "llama_scope": llama_scope}[which]()
