"""The baselines of a probe on latents: probes on x itself, on its principal directions and on random ones.

They do not depend on the SAE, so they are fitted once for a model, place, task and seed, and cached under the hash of the
activations and labels that they were fitted on.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch

from saebench.cache import load_from_cache, save_in_cache
from saebench.streams import numpy_generator

from .probes import Documents, Probe, principal_directions, random_directions

# Raised whenever a baseline would come out differently.
VERSION = 2


def baselines(
    x: np.ndarray, documents: Documents, ks: list[int], cache: Path | None, seed: int
) -> dict[tuple[str, int], Probe]:
    """{(source, k): probe} for `dense` (k = d, with C by cross-validation), `pca` and `random` (each k below d).

    Args:
        x: [N, d] pooled activations.
        cache: None keeps nothing.
        seed: of the run: the random directions'; folds are the documents'.
    """
    key = hashlib.sha256(
        f"{VERSION}|{seed}|{ks}|{x.shape}|".encode() + np.ascontiguousarray(x).tobytes() + documents.labels.digest()
    )
    path = cache and cache / "probing" / f"{key.hexdigest()[:32]}.safetensors"
    cached = load_from_cache(path) if path else None
    if cached is not None:
        return _restored(cached)
    found = _fit(x, documents, ks, seed)
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


def _fit(x: np.ndarray, documents: Documents, ks: list[int], seed: int) -> dict[tuple[str, int], Probe]:
    d = x.shape[1]
    out = {("dense", d): documents.dense_probe(x)}
    random = random_directions(d, numpy_generator("probing/directions", seed))
    for source, directions in (("pca", principal_directions(x[documents.train])), ("random", random)):
        projected = (x.astype(np.float64) - x[documents.train].mean(0, dtype=np.float64)) @ directions
        probes = documents.sparse_probes(projected, [k for k in ks if k < d])
        out |= {(source, k): probe for k, probe in probes.items()}
    return {key: out[key] for key in sorted(out)}
