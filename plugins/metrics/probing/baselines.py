"""Baselines of a probe on latents: probes on x itself, on its principal directions and on random directions.

They do not depend on the SAE, so they are fitted once for a model, hook point and task, and cached under the hash of their
features and labels.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch

from saebench.cache import load_from_cache, save_in_cache

from .probes import Documents, Probe, principal_directions, random_directions

# Raised whenever a number of a baseline changes.
VERSION = 1


def baselines(x: np.ndarray, documents: Documents, ks: list[int], cache: Path | None) -> dict[tuple[str, int], Probe]:
    """{(source, k): probe} for `dense` (k = d, with C by cross-validation), `pca` and `random` (each k below d).

    Args:
        x: [N, d] pooled activations.
        cache: the cache folder; None caches nothing.
    """
    key = hashlib.sha256(
        f"{VERSION}|{ks}|{x.shape}|".encode() + np.ascontiguousarray(x).tobytes() + documents.labels.digest()
    )
    path = cache and cache / "probing" / f"{key.hexdigest()[:32]}.safetensors"
    cached = load_from_cache(path) if path else None
    if cached is not None:
        return _restored(cached)
    found = _fit(x, documents, ks)
    if path:
        decisions = {f"{s}/{k}": torch.from_numpy(np.ascontiguousarray(p.decision)) for (s, k), p in found.items()}
        save_in_cache(path, decisions)
    return found


def _restored(tensors: dict[str, torch.Tensor]) -> dict[tuple[str, int], Probe]:
    out = {}
    for name in sorted(tensors, key=lambda n: (n.partition("/")[0], int(n.partition("/")[2]))):
        source, _, k = name.partition("/")
        out[source, int(k)] = Probe(tensors[name].numpy(), [], [], [])
    return out


def _fit(x: np.ndarray, documents: Documents, ks: list[int]) -> dict[tuple[str, int], Probe]:
    d = x.shape[1]
    out = {("dense", d): documents.probe(x, None, None, None)}
    sources = {"pca": principal_directions(x[documents.train]), "random": random_directions(d)}
    for source, directions in sources.items():
        projected = (x.astype(np.float64) - x[documents.train].mean(0, dtype=np.float64)) @ directions
        rankings = documents.rankings(projected)
        for k in ks:
            if k < d:
                out[source, k] = documents.probe(projected, rankings, k, None)
    return {key: out[key] for key in sorted(out)}
