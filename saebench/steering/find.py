"""Latents to steer with, by explanation, by activating text or by promoted tokens."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.errors import UsageError
from saebench.lens import token_scale
from saebench.results import Record, load_records
from saebench.steering.steer import Steerer
from saebench.text import clean

# Sentences that words stand in: alone after BOS, every word fires the latents of a text's first token.
_CARRIERS = ("They talked for a while about", "She wrote a long letter on", "We have heard much of")
_EMPTY = "something"


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
        for latent, text, _ in explanations(steerer.sae.sha256(), results)
        if all(word in text.lower() for word in wanted)
    }
    return [Found(latent, "explanation", text) for latent, text in sorted(matching.items())[:count]]


def explanations(sha256: str, results: Path) -> Iterator[tuple[int, str, dict[str, float]]]:
    """Latents, explanations and their scores in the JSON lines beside this SAE's records, whichever metric wrote them."""
    records = load_records(results) if results.exists() else []
    for record in records:
        if record.sae.get("sha256") == sha256 and record.path is not None:
            for name in record.metrics:
                yield from _explained(record, name)


def _explained(record: Record, metric: str) -> Iterator[tuple[int, str, dict[str, float]]]:
    lines = record.files(metric).get("jsonl", b"").decode("utf-8", "replace").splitlines()
    for line in lines:
        try:
            row: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("latent"), int) and isinstance(row.get("explanation"), str):
            yield row["latent"], row["explanation"], dict(_numbers(row.get("scores")))


def _numbers(scores: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a score, or of a nest of scores, by name."""
    if isinstance(scores, dict):
        for key, inner in scores.items():
            yield from _numbers(inner, f"{name} {clean(key, 40)}".strip())
    elif isinstance(scores, float) and math.isfinite(scores):
        yield name, scores


def _by_text(steerer: Steerer, words: str, count: int) -> list[Found]:
    """Latents that fire on the words in a sentence, and not on an empty word there, the rarer the better."""
    share = steerer.activity.share.to(steerer.lens.device)
    relative = _relative(steerer, words.strip())
    score = (relative - _relative(steerer, _EMPTY)).clamp_min(0) * -share.clamp(1e-9, 1).log()
    best = [int(i) for i in score.argsort(descending=True)[:count] if score[i] > 0]
    return [
        Found(
            i, "activating text", f"{float(relative[i]):.2f} of its strength; fires on {float(share[i]):.2%} of tokens"
        )
        for i in best
    ]


def _relative(steerer: Steerer, words: str) -> Tensor:
    """[d_sae] the largest activation on the words' tokens as a share of the latent's strength, at most 1: mean over carriers."""
    sae, strength = steerer.sae, steerer.activity.strength.to(steerer.lens.device)
    texts = [steerer.token_ids(f"{carrier} {words}") for carrier in _CARRIERS]
    x = steerer.lens.capture(texts).x_read
    found = []
    for row, (text, carrier) in enumerate(zip(texts, _CARRIERS, strict=True)):
        own = x[row, len(steerer.token_ids(carrier)) : len(text)]
        z = sae.encode(own).dense().clamp_min(0) * sae.W_dec.norm(dim=1) * token_scale(sae, own)[:, None]
        found.append((z.amax(0) / strength.clamp_min(1e-9)).clamp_max(1) * (strength > 0))
    return torch.stack(found).mean(0)


def _by_promoted(steerer: Steerer, words: str, count: int) -> list[Found]:
    """Latents whose direction, read through the output layer, raises the words' first tokens most: standard deviations."""
    tokenizer = steerer.subject.loaded.tokenizer
    first = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words.split()]
    unembedding = steerer.subject.model.get_output_embeddings().weight.float()
    direction = torch.nn.functional.normalize(steerer.sae.W_dec, dim=1)
    if direction.shape[1] != unembedding.shape[1]:
        return []  # written inside a block, where the output layer cannot read it
    direction = direction * final_norm(steerer, unembedding)
    centred = unembedding - unembedding.mean(0)
    spread = (direction @ (centred.T @ centred / len(unembedding)) * direction).sum(1).sqrt()
    score = (direction @ centred[first].T).amin(1) / spread.clamp_min(1e-9)
    score = torch.where(steerer.activity.strength.to(score.device) > 0, score, -torch.inf)
    best = [int(i) for i in score.argsort(descending=True)[:count] if score[i] > 0]
    return [
        Found(i, "promoted tokens", f"{float(score[i]):.1f} standard deviations above the vocabulary") for i in best
    ]


def final_norm(steerer: Steerer, unembedding: Tensor) -> Tensor:
    """The weight of the model's last norm, where there is one."""
    base = steerer.subject.model.base_model
    norms = (getattr(base, name, None) for name in ("norm", "final_layer_norm", "ln_f"))
    weight = next((norm.weight for norm in norms if norm is not None), None)
    return unembedding.new_ones(unembedding.shape[1]) if weight is None else weight.float()
