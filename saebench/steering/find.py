"""Latents to steer with, by explanation, by activating text or by promoted tokens."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.errors import UsageError
from saebench.results import Record, load_records
from saebench.steering.steer import Steerer


@dataclass(frozen=True)
class Found:
    """A latent that matches some words.

    Attributes:
        by: "explanation", "activating text" or "promoted tokens".
        detail: the explanation, or how well it matches.
    """

    latent: int
    by: str
    detail: str


def find(steerer: Steerer, words: str, results: Path, count: int = 5) -> list[Found]:
    """Latents that match the words, the best first for each way of looking.

    Args:
        results: folder of records; explanations are read from those of this SAE.
        count: latents for each way.

    Raises:
        UsageError: no words.
    """
    if not words.strip():
        raise UsageError("no words to look for: pass --find WORDS")
    return [
        *_by_explanation(steerer, words, results, count),
        *_by_text(steerer, words, count),
        *_by_promoted(steerer, words, count),
    ]


def _by_explanation(steerer: Steerer, words: str, results: Path, count: int) -> list[Found]:
    wanted = words.lower().split()
    matching = {
        latent: text
        for latent, text in _explanations(steerer.sae.sha256(), results)
        if all(word in text.lower() for word in wanted)
    }
    return [Found(latent, "explanation", text) for latent, text in sorted(matching.items())[:count]]


def _explanations(sha256: str, results: Path) -> Iterator[tuple[int, str]]:
    """Latents and explanations in the JSON lines beside this SAE's records, whichever metric wrote them."""
    records = load_records(results) if results.exists() else []
    for record in records:
        if record.sae.get("sha256") == sha256 and record.path is not None:
            for name in record.metrics:
                yield from _explained(record, name)


def _explained(record: Record, metric: str) -> Iterator[tuple[int, str]]:
    lines = record.files(metric).get("jsonl", b"").decode("utf-8", "replace").splitlines()
    for line in lines:
        try:
            row: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("latent"), int) and isinstance(row.get("explanation"), str):
            yield row["latent"], row["explanation"]


def _by_text(steerer: Steerer, words: str, count: int) -> list[Found]:
    """Latents that fire on the words as text: activation in percentiles, times the surprise that the latent fires at all."""
    ids = steerer.token_ids(f" {words.strip()}")
    begin = steerer.token_ids("a")[:-1]  # the special tokens that any text begins with
    here = steerer.lens.capture([ids])
    x = here.x_read[0, len(begin) :]
    z = steerer.sae.encode(x).dense().clamp_min(0) * steerer.sae.W_dec.norm(dim=1)
    strength, share = (t.to(z.device) for t in (steerer.activity.strength, steerer.activity.share))
    relative = torch.where(strength > 0, z.amax(0) / strength.clamp_min(1e-9), 0)
    score = relative.clamp_max(2) * -share.clamp(1e-9, 1).log()
    best = [int(i) for i in score.argsort(descending=True)[:count] if score[i] > 0]
    return [
        Found(
            i,
            "activating text",
            f"{float(relative[i]):.2f} of its strength there; fires on {float(share[i]):.2%} of tokens",
        )
        for i in best
    ]


def _by_promoted(steerer: Steerer, words: str, count: int) -> list[Found]:
    """Latents whose direction, read through the output layer, raises the words' first tokens most: standard deviations."""
    tokenizer = steerer.subject.loaded.tokenizer
    first = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words.split()]
    unembedding = steerer.subject.model.get_output_embeddings().weight.float()
    direction = torch.nn.functional.normalize(steerer.sae.W_dec, dim=1)
    if direction.shape[1] != unembedding.shape[1]:
        return []  # written inside a block, where the output layer cannot read it
    direction = direction * _final_norm(steerer, unembedding)
    centred = unembedding - unembedding.mean(0)
    spread = (direction @ (centred.T @ centred / len(unembedding)) * direction).sum(1).sqrt()
    score = (direction @ centred[first].T).amin(1) / spread.clamp_min(1e-9)
    score = torch.where(steerer.activity.strength.to(score.device) > 0, score, -torch.inf)
    best = [int(i) for i in score.argsort(descending=True)[:count] if score[i] > 0]
    return [
        Found(i, "promoted tokens", f"{float(score[i]):.1f} standard deviations above the vocabulary") for i in best
    ]


def _final_norm(steerer: Steerer, unembedding: Tensor) -> Tensor:
    """The weight of the model's last norm, where there is one."""
    base = steerer.subject.model.base_model
    norms = (getattr(base, name, None) for name in ("norm", "final_layer_norm", "ln_f"))
    weight = next((norm.weight for norm in norms if norm is not None), None)
    return unembedding.new_ones(unembedding.shape[1]) if weight is None else weight.float()
