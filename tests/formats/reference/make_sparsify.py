"""Regenerate reference/sparsify/ with eai-sparsify 1.3.3, in an environment of its own."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig

HERE = Path(__file__).parent / "sparsify"
D_IN, D_SAE, N = 8, 24, 12
X = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(3)) * 2 + 0.5


def make(name, seed, hook="layers.3", **cfg):
    coder = SparseCoder(D_IN, SparseCoderConfig(**({"num_latents": D_SAE, "k": 6} | cfg)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(coder.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    folder = HERE / name
    coder.save_to_disk(folder / hook)
    loaded = SparseCoder.load_from_disk(folder / hook)
    with torch.no_grad():
        acts, indices, _ = loaded.encode(X)
        dense = torch.zeros(N, coder.num_latents).scatter(-1, indices, acts)
        tensors = {"x": X, "latents": dense, "out": loaded(X).sae_out}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")
    (folder / "options.json").write_text(json.dumps({"path": hook}))


shutil.rmtree(HERE, ignore_errors=True)
make("topk", 1)
make("topk-expansion", 2, num_latents=0, expansion_factor=4, normalize_decoder=False)
make("groupmax", 3, activation="groupmax")
make("skip", 4, skip_connection=True)
make("transcoder", 5, transcode=True, hook="layers.3.mlp")
make("skip-transcoder", 6, transcode=True, skip_connection=True, hook="layers.3.mlp")
make("groupmax-skip-transcoder", 7, transcode=True, skip_connection=True, activation="groupmax", hook="h.3.mlp")
