"""From the pass to the page: what each latent writes, its neighbours, its explanation, and the exports."""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from saebench.board.html_page import render_page
from saebench.catalog import load_task
from saebench.corpus import task_contexts
from saebench.dashboard.collect import EDGES, Collected, collect
from saebench.errors import UsageError
from saebench.steering.find import explanations, final_norm
from saebench.steering.steer import Steerer
from saebench.text import clean

_TASK = "fidelity"
# Latents of one page: the page grows by a kilobyte a latent, memory with the square of their number.
LATENTS = 4096
_TOKENS, _NEIGHBOURS, _QUANTILES, _PER_QUANTILE, _RANDOM = 10, 5, 5, 2, 3


def dashboard(
    steerer: Steerer, path: str, *, latents: Sequence[int] = (), contexts: int | None = None, results: Path = Path("results")
) -> dict[str, Any]:  # fmt: skip
    """Everything that the page shows, as plain values.

    Args:
        path: of the SAE, for its steer commands.
        latents: which; empty: all, or of a larger SAE an even spread of 4,096.
        contexts: of the `fidelity` task's text; None: all.
        results: records whose explanations are shown.

    Raises:
        UsageError: a latent that does not exist, or too many of them.
    """
    sae, tokenizer = steerer.sae, steerer.subject.loaded.tokenizer
    chosen = _chosen(latents, sae.d_sae)
    task = load_task(_TASK)
    if contexts is not None:
        task = task.with_content(contexts=replace(task.contexts, count=contexts))
    text = task_contexts(task, tokenizer)
    found = collect(steerer.lens, sae, text, chosen)
    words = _Words(tokenizer)
    promoted = _promoted(steerer, chosen)
    near = _nearest(_cosines(sae.W_dec[torch.from_numpy(chosen)]), chosen)
    together = _nearest(found.correlation, chosen)
    explained = {latent: (text, scores) for latent, text, scores in explanations(sae.sha256(), results)}
    rows = []
    for i, latent in enumerate(chosen.tolist()):
        sentence, scores = explained.get(latent, ("", {}))
        rows.append({
            "latent": latent,
            "n": int(found.counts[i]),
            "histogram": [[int(b), int(found.histogram[i, b])] for b in found.histogram[i].nonzero()[0]],
            "top": [[words(t), round(v, 3)] for t, v in promoted[i][0]] if promoted else None,
            "bottom": [[words(t), round(v, 3)] for t, v in promoted[i][1]] if promoted else None,
            "correlated": together[i],
            "neighbours": near[i],
            "explanation": clean(sentence, 400) if sentence else "",
            "scores": scores,
            "windows": _windows(found, i, text.token_ids, words),
        })  # fmt: skip
    return {
        "sae": clean(Path(path).name), "sha256": sae.sha256(), "path": clean(path, 200), "model": clean(steerer.subject.name),
        "hook": str(steerer.lens.read), "task": task.label, "contexts": len(text), "tokens": found.tokens, "d_sae": sae.d_sae,
        "edges": [float(f"{edge:.4g}") for edge in EDGES], "words": words.texts, "latents": rows,
    }  # fmt: skip


def page(body: dict[str, Any]) -> str:
    """The page: one HTML file that asks for nothing else; its data are compressed."""
    packed = gzip.compress(json.dumps(body, separators=(",", ":"), allow_nan=False).encode(), mtime=0)
    return render_page(
        __package__, "dashboard.html", title=f"Latents of {body['sae']}", data=base64.b64encode(packed).decode()
    )


def neuronpedia(body: dict[str, Any]) -> dict[str, Any]:
    """The features in the batch format that Neuronpedia imports (SAEDashboard's field names)."""
    words, edges = body["words"], body["edges"]

    def feature(row: dict[str, Any]) -> dict[str, Any]:
        """One latent in Neuronpedia's fields."""
        windows = [(kind, one) for kind, found in row["windows"].items() for one in found]
        return {
            "feature_index": row["latent"],
            "frac_nonzero": row["n"] / max(body["tokens"], 1),
            "freq_hist_data_bar_values": [edges[b] for b, _ in row["histogram"]],
            "freq_hist_data_bar_heights": [count for _, count in row["histogram"]],
            "pos_str": [words[t] for t, _ in row["top"] or []], "pos_values": [v for _, v in row["top"] or []],
            "neg_str": [words[t] for t, _ in row["bottom"] or []], "neg_values": [v for _, v in row["bottom"] or []],
            "correlated_features_indices": [other for other, _ in row["correlated"]],
            "correlated_features_pearson": [value for _, value in row["correlated"]],
            "explanation": row["explanation"],
            "activations": [{"bin_contains": kind, "tokens": [words[t] for t in tokens], "values": z,
                             "qualifying_token_index": int(np.argmax(z))} for kind, (_, tokens, z) in windows],
        }  # fmt: skip

    return {"model_id": body["model"], "layer": body["hook"], "sae_id": body["sae"], "n_tokens": body["tokens"],
            "features": [feature(row) for row in body["latents"]]}  # fmt: skip


def _chosen(latents: Sequence[int], d_sae: int) -> np.ndarray:
    for latent in latents:
        if not 0 <= latent < d_sae:
            raise UsageError(f"--latent {latent} is out of range: this SAE has latents 0 to {d_sae - 1}")
    if len(set(latents)) > LATENTS:
        raise UsageError(f"--latent names {len(set(latents))} latents; a page holds {LATENTS:,}: name fewer")
    if latents:
        return np.array(sorted(set(latents)))
    return np.arange(d_sae) if d_sae <= LATENTS else np.linspace(0, d_sae - 1, LATENTS).round().astype(np.int64)


class _Words:
    """Tokens as numbers into `texts`, so that each text stands once in the page."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._at, self.texts = tokenizer, dict[int, int](), list[str]()

    def __call__(self, token: int) -> int:
        if token not in self._at:
            self._at[token] = len(self.texts)
            self.texts.append(str(self._tokenizer.decode([token])))
        return self._at[token]


Ranked = list[tuple[int, float]]


def _promoted(steerer: Steerer, chosen: np.ndarray) -> list[tuple[Ranked, Ranked]] | None:
    """Tokens that each unit decoder row raises and lowers most, through the final norm's weight and the head.

    None where the SAE does not write to the residual stream.
    """
    head = steerer.subject.model.get_output_embeddings().weight.float()
    directions = normalize(steerer.sae.W_dec[torch.from_numpy(chosen)].float(), dim=1)
    if directions.shape[1] != head.shape[1]:
        return None
    weight, found = final_norm(steerer, head), []
    count = min(_TOKENS, len(head))
    for rows in (directions * weight).split(256):
        logits = rows @ head.T
        sides = [logits.topk(count, dim=1, largest=largest) for largest in (True, False)]
        found += [tuple(_ranked(side, i) for side in sides) for i in range(len(rows))]
    return found  # type: ignore[return-value]


def _ranked(side: Any, i: int) -> Ranked:
    return list(zip(side.indices[i].tolist(), side.values[i].tolist(), strict=True))


def _cosines(rows: Tensor) -> np.ndarray:
    unit = normalize(rows.float(), dim=1)
    return np.asarray((unit @ unit.T).cpu())


def _nearest(similarity: np.ndarray, chosen: np.ndarray) -> list[list[list[float]]]:
    """For each latent, the others of largest absolute similarity, with it."""
    size = np.abs(similarity)
    np.fill_diagonal(size, -1)
    best = np.argsort(-size, axis=1, kind="stable")[:, : min(_NEIGHBOURS, len(chosen) - 1)]
    return [
        [[int(chosen[j]), round(float(similarity[i, j]), 3)] for j in row if size[i, j] > 0]
        for i, row in enumerate(best)
    ]


def _windows(found: Collected, i: int, token_ids: np.ndarray, words: _Words) -> dict[str, list[Any]]:
    """The strongest windows; two of each fifth of the sampled peaks, strongest fifth first; and random ones."""
    if not found.strongest.rows:
        return {}

    def shown(rows: dict[str, np.ndarray], at: Sequence[int]) -> list[Any]:
        one = []
        for k in at:
            context, start, z = int(rows["context"][k]), int(rows["start"][k]), rows["z"][k]
            tokens = [words(int(t)) for t in token_ids[context, start : start + len(z)]]
            one.append([context, tokens, [float(f"{v:.3g}") for v in z]])
        return one

    top, sample = found.strongest.of(i), found.sampled.of(i)
    windows = {"strongest": shown(top, range(len(top["key"])))}
    fifths = np.array_split(np.argsort(-sample["peak"], kind="stable"), _QUANTILES)
    for number, fifth in zip(range(_QUANTILES, 0, -1), fifths, strict=True):
        windows[f"fifth {number} of 5"] = shown(sample, fifth[:_PER_QUANTILE].tolist())
    windows["random"] = shown(sample, range(min(_RANDOM, len(sample["key"]))))
    return {kind: rows for kind, rows in windows.items() if rows}
