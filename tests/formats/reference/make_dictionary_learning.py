"""Regenerate reference/dictionary_learning/ with dictionary-learning 0.1.0, in an environment of its own.

Each case is written as its training loop writes one (`ae.pt` of the state dictionary, `config.json` of the trainer's
config) and read back by the library's own `load_dictionary`. Only its buffer needs nnsight, so that may be missing.
"""

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock

try:
    import nnsight  # noqa: F401
except ImportError:
    sys.modules["nnsight"] = MagicMock()

import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from safetensors.torch import save_file

HERE = Path(__file__).parent / "dictionary_learning"
D_IN, D_SAE, N = 8, 24, 12
X = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(2)) * 2 - 0.4


def randomise(ae, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted([*ae.named_parameters(), *ae.named_buffers()]):
            if p.is_floating_point():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
                if name == "threshold":
                    p.copy_(0.2 + p.abs())
    return ae


def make(name, ae, seed, norm_factor=None, **trainer):
    folder = HERE / name
    folder.mkdir(parents=True)
    randomise(ae, seed)
    if norm_factor and not trainer.get("backup"):
        ae.scale_biases(norm_factor)  # as training does before it saves
    state = {k: v.detach().clone() for k, v in ae.state_dict().items()}
    backup = trainer.pop("backup", False)
    config = {
        "trainer": {
            "dict_class": type(ae).__name__, "trainer_class": "SomeTrainer", "activation_dim": D_IN, "dict_size": D_SAE,
            "lr": 1e-3, "steps": 100, "seed": 0, "device": "cpu", "layer": 3, "lm_name": "tiny-llama",
            "wandb_name": "x", "submodule_name": "resid_post_layer_3", **trainer,
        },
        "buffer": {"d_submodule": D_IN, "io": "out", "n_ctxs": 10, "ctx_len": 64},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    torch.save(state, folder / "ae.pt")
    if backup:
        with torch.no_grad():
            ae.scale_biases(norm_factor)
        torch.save(ae.state_dict(), folder / "ae.pt")
    loaded, _ = load_dictionary(str(folder), device="cpu")
    if backup:  # what is stored is not scaled yet, and wrapped
        torch.save(
            {"step": 7, "ae": state, "optimizer": {}, "config": {}, "norm_factor": norm_factor}, folder / "ae.pt"
        )
    with torch.no_grad():
        tensors = {"x": X, "latents": loaded.encode(X), "out": loaded(X)}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")


shutil.rmtree(HERE, ignore_errors=True)
make("AutoEncoder", AutoEncoder(D_IN, D_SAE), 1)
make("AutoEncoder-scaled", AutoEncoder(D_IN, D_SAE), 2, norm_factor=5.5)
make("AutoEncoderNew", AutoEncoderNew(D_IN, D_SAE), 3)
make("GatedAutoEncoder", GatedAutoEncoder(D_IN, D_SAE), 4)
make("GatedAutoEncoder-scaled", GatedAutoEncoder(D_IN, D_SAE), 5, norm_factor=5.5)
make("JumpReluAutoEncoder", JumpReluAutoEncoder(D_IN, D_SAE), 6, target_l0=10)
make("AutoEncoderTopK", AutoEncoderTopK(D_IN, D_SAE, 5), 7, k=5)
make("AutoEncoderTopK-scaled", AutoEncoderTopK(D_IN, D_SAE, 5), 8, norm_factor=3.25, k=5)
make("BatchTopKSAE", BatchTopKSAE(D_IN, D_SAE, 5), 9, k=5)
make("BatchTopKSAE-backup", BatchTopKSAE(D_IN, D_SAE, 5), 10, norm_factor=3.25, k=5, backup=True)
make("MatryoshkaBatchTopKSAE", MatryoshkaBatchTopKSAE(D_IN, D_SAE, 5, [6, 8, 10]), 11, k=5, group_sizes=[6, 8, 10])
