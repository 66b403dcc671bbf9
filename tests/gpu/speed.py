"""Tokens per second and the share of the chip's measured matmul rate, for a Llama-3.2-1B-shaped model with random weights.

    python tests/gpu/speed.py [--out results/bench/gpu.json]

One SAE of 32,768 latents at layer 8, bfloat16 model, contexts of 128: the pass that `saebench run` makes, on made-up token ids.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import saebench
from saebench.hookpoint import HookPoint
from saebench.running.cost import model_size, pass_cost
from saebench.testing import random_sae

LLAMA_1B = LlamaConfig(
    vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, rope_theta=500_000.0, tie_word_embeddings=True, max_position_embeddings=8192,
)  # fmt: skip
HOOK, LATENTS, K, CONTEXTS, LENGTH = "blocks.8.hook_resid_post", 32_768, 64, 4096, 128


def matmul_rate(n: int = 8192, repeats: int = 20) -> float:
    """Multiply-adds per second of a large bfloat16 product: the chip's own limit, measured."""
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize()
    return repeats * n**3 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here")
    with tempfile.TemporaryDirectory() as folder:
        model = LlamaForCausalLM(LLAMA_1B).to(torch.bfloat16)
        model.save_pretrained(Path(folder) / "llama-1b-random")
        np.save(Path(folder) / "ids.npy", np.random.default_rng(0).integers(3, 128_000, (CONTEXTS, LENGTH)))
        record = saebench.run(
            random_sae(2048, LATENTS, k=K), model=f"{folder}/llama-1b-random", hook=HOOK, tokens=f"{folder}/ids.npy",
            dtype="bfloat16", results=Path(folder) / "results",
        )[0]  # fmt: skip
    size = model_size(LLAMA_1B)
    cost = pass_cost(size, HookPoint.parse(HOOK), [(2048, LATENTS)], CONTEXTS, LENGTH, losses=True)
    seconds = record.runs[0]["timings"]["pass"]
    work = sum(v for stage, v in cost.stages.items() if stage != "calibration")
    rate = matmul_rate()
    found = {
        "device": torch.cuda.get_device_name(),
        "tokens": CONTEXTS * LENGTH,
        "pass_seconds": seconds,
        "tokens_per_second": CONTEXTS * LENGTH / seconds,
        "matmul_rate": rate,
        "share_of_matmul_rate": work / seconds / rate,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
        "batch_size": record.runs[0]["provenance"]["batch_size"],
    }
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
