"""SAEBench's own sparse-probing functions on fixed tokens and one SAE. Runs in SAEBench's environment.

    .bench/venv/bin/python tests/bench/saebench_probing_peer.py --model DIR --tokens .bench/probing.npz --sae DIR --out FILE.json

Its functions, in the order its `run_eval_single_dataset` calls them: `get_all_llm_activations`, `get_sae_meaned_activations`,
`train_probe_on_activations(select_top_k=k)`. Only the texts are ours. What is random there is which documents of the other
classes stand against a class (as many as the class has, on either side of the split): that is its seed noise, over SEEDS seeds.

Beside FILE.json lies FILE.npz: the pooled latents in the order of the tokens' rows, to be held against ours.

Facts about what it does (version 0.6.0): features are not scaled and C is 1; latents are chosen by the difference of class means
on the balanced training set; a class is scored by the accuracy of its own probe on the balanced test set, so that chance is a
half; a token counts unless it is the pad, EOS or BOS id or its activation sums to exactly 0; outliers count.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from meter import Meter
from saebench_core_peer import HOOK_LAYER, load_model, load_sae, versions

KS = (1, 2, 5, 16)
SEEDS = 10


def by_class(data: Any, side: bool, pad: int) -> Iterator[tuple[str, np.ndarray, dict[str, torch.Tensor]]]:
    """(class, rows, tokenized texts as SAEBench's tokenizer call gives them: padded on the right with the pad id)."""
    for c, name in enumerate(data["classes"]):
        rows = np.flatnonzero((data["label"] == c) & (data["test"] == side))
        ids = data["token_ids"][rows].copy()
        ids[np.arange(ids.shape[1]) >= data["lengths"][rows][:, None]] = pad
        yield str(name), rows, {"input_ids": torch.from_numpy(ids)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--model", "--tokens", "--sae", "--out"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    # Its shape checks fail on its own calls with current jaxtyping and beartype (a class's n against the 2n of its balanced set).
    os.environ["JAXTYPING_DISABLE"] = "1"
    from sae_bench.evals.sparse_probing import probe_training
    from sae_bench.sae_bench_utils import activation_collection as collect
    from transformers import AutoTokenizer

    data = np.load(args.tokens)
    _, model = load_model(args.model)
    model.tokenizer = AutoTokenizer.from_pretrained(args.model)
    sae = load_sae(args.sae)
    pooled: dict[bool, dict[str, torch.Tensor]] = {}
    order: list[np.ndarray] = []
    meter = Meter()
    for side in (False, True):
        parts = list(by_class(data, side, model.tokenizer.pad_token_id))
        x = collect.get_all_llm_activations(
            {name: tokens for name, _, tokens in parts},
            model,
            32,
            HOOK_LAYER,
            f"blocks.{HOOK_LAYER}.hook_resid_post",
            mask_bos_pad_eos_tokens=True,
        )
        pooled[side] = collect.get_sae_meaned_activations(x, sae, 125)
        order += [rows for _, rows, _ in parts]
    spent = meter.stop()
    latents = torch.cat([pooled[side][name] for side in (False, True) for name in pooled[side]]).numpy()
    np.savez(args.out.with_suffix(".npz"), latents=latents[np.argsort(np.concatenate(order))])
    runs = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        runs.append(
            {k: probe_training.train_probe_on_activations(pooled[False], pooled[True], select_top_k=k)[1] for k in KS}
        )
    result = {"accuracy": runs, "seeds": SEEDS, "ks": KS, **spent, "versions": versions()}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
