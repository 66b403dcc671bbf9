"""Activations per second of training, text to SAE, and the language model's share: Llama-3.2-1B-shaped, random weights.

    python tests/gpu/train_speed.py [--out results/bench/gpu-train.json]

One SAE of 32,768 latents at layer 8, bfloat16, batches of 4,096, contexts of 128: what `saebench train` does, on made-up token
ids. A short run comes first, so that kernels are loaded when time is taken.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import LLAMA_1B
from transformers import LlamaConfig, LlamaForCausalLM

from saebench.training.checkpoints import RunFolder
from saebench.training.request import SaeSpec, TrainRequest
from saebench.training.run import train

LENGTH = 128


class Quiet:
    """Hears how training goes, and says nothing."""

    def message(self, text: str) -> None: ...

    def stepped(self, step: int) -> None: ...

    def capturing(self, done: int, total: int) -> None: ...

    def begin(self, steps: int, done: int) -> None: ...

    def progress(self, step: int, tokens_per_second: float, lines: list[dict[str, Any]]) -> None: ...

    def end(self) -> None: ...

    def logged(self, folder: RunFolder) -> None: ...


def measure(
    config: LlamaConfig, hook: str, *, width: int, k: int, batch: int, contexts: int, device: str, dtype: str
) -> dict[str, Any]:
    """Train a batchtopk SAE on all contexts of made-up token ids; seconds are those that the run itself logs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
        model.save_pretrained(folder / "random-llama")
        del model
        np.save(folder / "ids.npy", np.random.default_rng(0).integers(3, config.vocab_size, (contexts, LENGTH)))
        for out, tokens in (("warm-up", 4 * batch), ("run", None)):
            request = TrainRequest(
                model=str(folder / "random-llama"), hook=hook, saes=(SaeSpec("sae", "batchtopk", width, 0, {"k": k}),),
                data=folder / "ids.npy", batch_size=batch, tokens=tokens, dtype=dtype, device=device, checkpoint_every=10**9,
            )  # fmt: skip
            train(request, folder / out, Quiet())
        log = RunFolder(folder / "run").read_log()
    seconds = log[-1]["seconds"]
    activations, spent = log[-1]["step"] * batch, sum(seconds.values())
    return {
        "activations": activations,
        "seconds": seconds,
        "activations_per_second": activations / spent,
        "model_share": seconds["activations"] / spent,
        "limit_activations_per_second": activations / seconds["activations"],
        "explained_variance": [line["explained_variance"] for line in log if "loss" in line][-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here")
    found = {"device": torch.cuda.get_device_name()} | measure(
        LLAMA_1B, "blocks.8.hook_resid_post", width=32_768, k=64, batch=4096, contexts=32_768, device="cuda",
        dtype="bfloat16",
    )  # fmt: skip
    text = json.dumps(found | {"peak_memory_bytes": torch.cuda.max_memory_allocated()}, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
