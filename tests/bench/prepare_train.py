"""Activations that every trainer of the benchmark eats, captured once: `.bench/train-acts.pt` and `.bench/valid-acts.pt`.

    python tests/bench/prepare_train.py .bench

SmolLM2-135M-Instruct, output of layer 15, in bfloat16; contexts of 128 tokens from the train half of the vendored text. BOS and
activations ten times longer than the median are left out, rows are shuffled. One document in ten is held back: rates are
chosen on it, never on the text that tasks measure.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saebench.hookpoint import HookPoint
from saebench.models import load_model
from saebench.subject import Subject

ROWS = {"train": 614_400, "valid": 40_960}  # 300 and 20 batches of 2048
LENGTH, BATCH = 128, 16


def main(out: Path) -> None:
    """Fill `out`; files that exist are kept."""
    if all((out / f"{name}-acts.pt").is_file() for name in ROWS):
        return
    out.mkdir(parents=True, exist_ok=True)
    subject = Subject(load_model("smollm2-135m-instruct", dtype="bfloat16"))
    texts = pd.read_parquet(Path(__file__).parents[2] / "tasks" / "data" / "texts.parquet")
    texts = list(texts[texts["split"] == "train"]["text"])
    parts = {"train": [t for i, t in enumerate(texts) if i % 10], "valid": texts[::10]}
    for name, documents in parts.items():
        torch.save(capture(subject, documents, ROWS[name]), out / f"{name}-acts.pt")


def capture(subject: Subject, documents: list[str], wanted: int) -> Tensor:
    """[wanted, d] bfloat16, shuffled."""
    tokenizer = subject.loaded.tokenizer
    ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in documents]
    body = LENGTH - 1
    windows = [d[i : i + body] for d in ids for i in range(0, len(d) - body + 1, body)]
    order = np.random.default_rng(0).permutation(len(windows))
    found: list[Tensor] = []
    rows, limit = 0, None
    for start in range(0, len(order), BATCH):
        tokens = torch.tensor([[tokenizer.bos_token_id, *windows[i]] for i in order[start : start + BATCH]])
        x = subject.capture(tokens, HookPoint.parse("blocks.15.hook_resid_post"))[0][:, 1:].flatten(0, 1)
        norm = x.float().norm(dim=1)
        limit = limit if limit is not None else 10 * norm.median()
        found.append(x[norm <= limit].bfloat16())
        rows += len(found[-1])
        if rows >= wanted:
            break
    x = torch.cat(found)
    if len(x) < wanted:
        raise SystemExit(f"the text gives {len(x)} activations, {wanted} are needed")
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:wanted]].clone()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
