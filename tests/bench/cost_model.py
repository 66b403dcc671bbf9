"""What one pass over the tokens must cost at least, by design.md's count, from parts timed one by one in one process.

    one full forward + (K + 2) × the layers above the hook + K × SAE + calibration

The two ablations and the calibration drop out once they are cached. "Full forward" is the Hugging Face call, logits
included, at the batch size at which this machine runs it fastest; "layers above" is that less a run that stops at the hook
point, so it holds the output head; "SAE" is encode and decode. Losses, KL and metrics are not in it: they are the overhead
that the ratio of wall time to this model shows.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

HOOK_LAYER = 15
CALIBRATION_CONTEXTS = 32
SAMPLE = 32  # contexts each part is timed on
ROUNDS = 3


class _Stop(Exception):
    pass


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """(wall, CPU) seconds of a piece of work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


@torch.no_grad()
def measure(folder: Path, tokens: torch.Tensor, sae_path: Path) -> dict[str, Any]:
    """Seconds per token of each part, medians of `ROUNDS` interleaved rounds."""
    from transformers import AutoModelForCausalLM

    from saebench import load_sae
    from saebench.arithmetic.allocator import keep_freed_memory
    from saebench.arithmetic.linear import use_onednn

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    keep_freed_memory()
    use_onednn(model)  # as our side runs it: the model at its fastest, or the ratio would flatter us
    sae = load_sae(sae_path)
    ids = tokens[:SAMPLE]
    n = ids.numel()
    x = torch.randn(n, sae.d_in, generator=torch.Generator().manual_seed(0)) * 7  # the usual norm at this layer: 170

    def full(size: int) -> None:
        for batch in ids.split(size):
            model(batch, use_cache=False)

    def below(size: int) -> None:
        def stop(*_: Any) -> None:
            raise _Stop

        handle = model.model.layers[HOOK_LAYER].register_forward_hook(stop)
        for batch in ids.split(size):
            with suppress(_Stop):
                model(batch, use_cache=False)
        handle.remove()

    def through_sae(size: int) -> None:
        for batch in x.split(size * tokens.shape[1]):
            sae(batch)

    sizes = (1, 2, 4, 8, 16)
    full(1), below(1), through_sae(1)  # warm-up
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for size in sizes:
            times.setdefault(f"full@{size}", []).append(seconds(lambda s=size: full(s)))
    # By CPU time: what other processes do to the wall clock must not choose the batch size.
    fastest = min(sizes, key=lambda size: median(cpu for _, cpu in times[f"full@{size}"]))
    for _ in range(ROUNDS):
        for name, part in (("full", full), ("below", below), ("sae", through_sae)):
            times.setdefault(name, []).append(seconds(lambda p=part: p(fastest)))
    per_token = [{name: median(t[unit] for t in v) / n for name, v in times.items()} for unit in (0, 1)]
    for parts in per_token:
        parts["above"] = parts["full"] - parts["below"]
    return {"batch_size": fastest, "per_token_s": per_token[0], "per_token_cpu_s": per_token[1], "all": times}


def predict(parts: dict[str, float], tokens: int, k: int, context: int, *, cached: bool) -> float:
    """Seconds the cost model gives for K SAEs over `tokens` tokens."""
    streams = k if cached else k + 2
    calibration = 0 if cached else CALIBRATION_CONTEXTS * context * parts["below"]
    return tokens * (parts["full"] + streams * parts["above"] + k * parts["sae"]) + calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--model", "--tokens", "--sae", "--out"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    result = measure(args.model, torch.from_numpy(np.load(args.tokens)), args.sae)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
